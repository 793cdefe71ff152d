//! Runs: tasks that a client hands in together, and results that a worker gives together.
//!
//! Under load tasks come hundreds at a time, most of them alike: one client's, one action's, with room at one worker
//! for many of them. Taken as a run, what is true of all of them is looked up once, and the rows of client, worker and
//! action stay at hand. To the letter nothing else happens than if each had come as an [`Event`](super::Event) of its
//! own: the same effects in the same order. Whatever is out of the ordinary goes the ordinary way.

use super::choice::{Change, Pick};
use super::clients::Wait;
use super::payload::BLOCK_BYTES;
use super::task::{Place, Tasks};
use super::watching::STALL;
use super::{AssignmentId, Effects, Finish, Payload, Peer, Role, Scheduler, Submission, Time, limits};

/// How far a part of a run went.
#[derive(Debug)]
enum Went<T> {
    /// All of it is done.
    Through,
    /// So far; what is common is to be looked up anew.
    OnePart,
    /// To one that must go the ordinary way.
    To(T),
}

/// A task of a run: its client's number for it, and its payload.
type Handed<'p> = (u64, Payload<'p>);

/// A result of a run.
type Given<'a> = (AssignmentId, Payload<'a>);

/// A result whose task has nothing about it that is out of the ordinary.
#[derive(Debug, Clone, Copy)]
struct Done<'a> {
    assignment: AssignmentId,
    payload: Payload<'a>,
    client: u32,
    id: u64,
    action: u32,
}

/// The next of a worker's results, if its task is a usual one.
#[inline]
fn next_usual<'a>(
    tasks: &Tasks,
    worker: u32,
    results: &mut impl Iterator<Item = Given<'a>>,
) -> Result<Done<'a>, Went<Given<'a>>> {
    let (assignment, payload) = results.next().ok_or(Went::Through)?;
    let usual = tasks.get(assignment.task()).filter(|task| {
        task.attempt_tag == assignment.tag()
            && task.place() == Place::Held(worker)
            && task.is_wanted()
            && task.is_usual()
    });
    let task = usual.ok_or(Went::To((assignment, payload)))?;
    Ok(Done { assignment, payload, client: task.client, id: task.client_id, action: task.action })
}

impl Scheduler {
    /// Takes tasks of one action with the usual options, as [`handle`](Self::handle) takes an
    /// [`Event::Submit`](super::Event::Submit) for each: the client's number for it, and its payload.
    ///
    /// ```
    /// use reparto_balancer::scheduler::{Config, Effect, Event, Payload, Peer, Scheduler, Time};
    /// let (mut scheduler, mut effects) = (Scheduler::new(Config::default()), Vec::new());
    /// let peer = Peer { index: 0, generation: 1 };
    /// scheduler.handle(Time(0), Event::ClientJoined { peer }, &mut effects);
    /// let mut tasks = [1, 2, 3].into_iter().map(|id| (id, Payload::new(b"hola")));
    /// scheduler.submit_all(Time(1), peer, "upper", &mut tasks, &mut effects);
    /// assert_eq!(scheduler.totals().queued, 3);
    /// ```
    pub fn submit_all<'a, 'p>(
        &mut self,
        now: Time,
        peer: Peer,
        action: &str,
        tasks: &mut impl Iterator<Item = (u64, Payload<'p>)>,
        effects: &mut impl Effects<'a>,
    ) {
        self.now = self.now.max(now);
        let Role::Client(client) = self.role(peer) else { return tasks.for_each(drop) };
        loop {
            match self.submit_some(client, action, tasks, effects) {
                Went::Through => break,
                Went::OnePart => {}
                Went::To((id, payload)) => {
                    self.submit(client, &Submission::new(id, action, payload), effects);
                }
            }
        }
        if self.stopping.is_some() {
            self.stop_if_quiet(effects);
        }
    }

    /// Takes results, as [`handle`](Self::handle) takes an [`Event::Finished`](super::Event::Finished) for each, done
    /// and without a service time.
    pub fn finish_all<'a>(
        &mut self,
        now: Time,
        peer: Peer,
        results: &mut impl Iterator<Item = (AssignmentId, Payload<'a>)>,
        effects: &mut impl Effects<'a>,
    ) {
        self.now = self.now.max(now);
        let Role::Worker(worker) = self.role(peer) else { return results.for_each(drop) };
        loop {
            match self.finish_some(worker, results, effects) {
                Went::Through => break,
                Went::OnePart => {}
                Went::To((assignment, payload)) => {
                    self.finished(worker, assignment, Finish::Done, None, payload, effects);
                }
            }
        }
        if self.stopping.is_some() {
            self.stop_if_quiet(effects);
        }
    }

    /// Gives the tasks at the head of a run to one worker, as many as it is next for.
    #[inline]
    fn submit_some<'a, 'p>(
        &mut self,
        client: u32,
        action: &str,
        tasks: &mut impl Iterator<Item = Handed<'p>>,
        effects: &mut impl Effects<'a>,
    ) -> Went<Handed<'p>> {
        match self.next_for(client, action) {
            Some((index, pick)) => self.hand_over_some((client, index), pick, tasks, effects),
            None => tasks.next().map_or(Went::Through, Went::To),
        }
    }

    /// Where nothing waits and nothing else is unusual: the action of a client's tasks, and the worker that is next.
    #[inline]
    fn next_for(&self, client: u32, action: &str) -> Option<(u32, Pick)> {
        let index = self.clients[client].last_action;
        let row = self.actions.get(index)?;
        if self.stopping.is_some() || !row.queue.is_empty() || &*row.name != action {
            return None;
        }
        Some((index, self.choice.pick(&row.offers)?))
    }

    #[inline]
    fn hand_over_some<'a, 'p>(
        &mut self,
        (client, action): (u32, u32),
        pick: Pick,
        tasks: &mut impl Iterator<Item = Handed<'p>>,
        effects: &mut impl Effects<'a>,
    ) -> Went<Handed<'p>> {
        // Where several groups offer the action, each in its turn, the next task may be another group's.
        let takes_turns = self.choice.takes_turns(&self.actions[action].offers);
        let held = self.tasks.len() + self.waiters.len();
        // Beyond the bounds there is a reserve for clients that have little, which is not seen to here.
        let most_bytes = self.config.max_bytes.checked_sub(self.bytes);
        let most = most_bytes.map_or(0, |_| self.config.max_tasks.saturating_sub(held));
        let most_bytes = most_bytes.unwrap_or(0);
        let (worker, client_row) = (&mut self.workers[pick.worker], &mut self.clients[client]);
        let (in_flight, bytes_before) = (worker.in_flight, worker.bytes);
        let peer = worker.peer;
        let name = &*self.actions[action].name;
        let mut count = 0;
        let mut went = None;
        let mut give = || {
            if went.is_some() {
                return None;
            }
            let Some((id, payload)) = tasks.next() else {
                went = Some(Went::Through);
                return None;
            };
            let bytes = payload.len();
            let fits = count < most && worker.bytes - bytes_before + bytes <= most_bytes;
            if !fits || bytes > BLOCK_BYTES || !client_row.numbers.takes_at_once(id) {
                went = Some(Went::To((id, payload)));
                return None;
            }
            self.attempt_tag = self.attempt_tag.checked_add(1).unwrap_or(1);
            let (task, row) = self.tasks.add();
            row.payload = self.payloads.keep(task, payload);
            (row.client, row.client_id) = (client, id);
            (row.action, row.since) = (action, self.now);
            row.priority = limits::DEFAULT_PRIORITY;
            row.max_attempts = limits::DEFAULT_MAX_ATTEMPTS;
            row.attempt_tag = self.attempt_tag;
            row.put(Place::Held(pick.worker));
            client_row.numbers.put(id, task);
            let assignment = AssignmentId::new(self.attempt_tag, task);
            worker.held.add(assignment);
            worker.in_flight += 1;
            worker.bytes += bytes;
            count += 1;
            if takes_turns || !worker.stays.contains(&worker.in_flight) || !worker.has_room() {
                went = Some(Went::OnePart);
            }
            Some((assignment, payload))
        };
        effects.assign_some(peer, name, &mut give);
        while give().is_some() {}
        let bytes = worker.bytes - bytes_before;
        let outgrew = in_flight <= worker.threads && worker.in_flight > worker.threads;
        let stall_at = self.now.after(STALL);
        let look = outgrew && stall_at < worker.check_at;
        client_row.bytes += bytes;
        self.bytes += bytes;
        self.owed += count;
        self.counts.submitted += count as u64;
        self.actions[action].running += count;
        if look {
            self.set_check(pick.worker, stall_at);
        }
        if count > 0 {
            self.choice.picked(&mut self.actions, pick);
            self.choice.update(&mut self.workers, &mut self.actions, pick.worker, Change::Assigned);
        }
        went.unwrap_or(Went::OnePart)
    }

    /// Ends the tasks at the head of a worker's results, as long as nothing waits for the room that they leave.
    #[inline]
    fn finish_some<'a>(
        &mut self,
        worker: u32,
        results: &mut impl Iterator<Item = Given<'a>>,
        effects: &mut impl Effects<'a>,
    ) -> Went<Given<'a>> {
        let row = &mut self.workers[worker];
        if self.queued > 0 || self.stopping.is_some() || row.stalled {
            return results.next().map_or(Went::Through, Went::To);
        }
        let (mut count, mut bytes) = (0, 0);
        let mut next = next_usual(&self.tasks, worker, results);
        let went = loop {
            let Done { client, action, .. } = match next {
                Ok(done) => done,
                Err(went) => break went,
            };
            let (client_row, action_row) = (&mut self.clients[client], &mut self.actions[action]);
            if let Ok(done) = next
                && (client_row.gone || action_row.offers.workers == 0)
            {
                break Went::To((done.assignment, done.payload));
            }
            let (peer, count_before, bytes_before) = (client_row.peer, count, bytes);
            let mut give = || {
                let done = next.as_ref().ok().filter(|done| (done.client, done.action) == (client, action));
                let Done { assignment, id, payload, .. } = *done?;
                let task = assignment.task();
                row.held.remove(&self.tasks, assignment);
                let (tasks, waiters) = (&self.tasks, &self.waiters);
                let id_of = |entry| super::clients::client_id_of(tasks, waiters, entry);
                client_row.numbers.remove(&self.hasher, id, Wait::First(task).entry(), id_of);
                let kept = self.tasks[task].payload;
                self.tasks.vacate(task);
                bytes += kept.len();
                self.payloads.release(kept);
                count += 1;
                next = next_usual(&self.tasks, worker, results);
                Some((id, payload))
            };
            effects.result_some(peer, &mut give);
            while give().is_some() {}
            client_row.bytes -= bytes - bytes_before;
            action_row.running -= count - count_before;
        };
        if count > 0 {
            row.finished_at = self.now;
            row.in_flight -= count as u32;
            row.bytes -= bytes;
            row.done += count as u64;
            self.bytes -= bytes;
            self.owed -= count;
            self.counts.done += count as u64;
            self.choice.update(&mut self.workers, &mut self.actions, worker, Change::Other);
        }
        went
    }
}

//! Runs: tasks that a client hands in together, and results that a worker gives together.
//!
//! Under load tasks come hundreds at a time, most of them alike: one client's, one action's, with room at one worker
//! for many of them. Taken as a run, what is true of all of them is looked up once, and the rows of client, worker and
//! action stay at hand. To the letter nothing else happens than if each had come as an [`Event`](super::Event) of its
//! own: the same effects in the same order. Whatever is out of the ordinary goes the ordinary way.

use super::choice::{Change, Pick};
use super::clients::Wait;
use super::payload::{BLOCK_BYTES, Kept};
use super::task::{Place, Task};
use super::watching::STALL;
use super::wheel::NO_SLOT;
use super::{
    Assignment, AssignmentId, Effects, Finish, Payload, Peer, Role, Scheduler, Submission, Time, limits,
};

/// How far a part of a run went.
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
type Result<'a> = (AssignmentId, Payload<'a>);

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
        let name = &*self.actions[action].name;
        let mut count = 0;
        let went = loop {
            let (id, payload) = match tasks.next() {
                Some(task) => task,
                None => break Went::Through,
            };
            let bytes = payload.len();
            let fits = count < most && worker.bytes - bytes_before + bytes <= most_bytes;
            if !fits || bytes > BLOCK_BYTES || !client_row.numbers.takes_at_once(id) {
                break Went::To((id, payload));
            }
            self.attempt_tag = self.attempt_tag.checked_add(1).unwrap_or(1);
            let kept = self.payloads.keep(payload);
            let (task, row) = self.tasks.add(Task::BLANK);
            row.payload = kept;
            (row.client, row.client_id) = (client, id);
            (row.action, row.since) = (action, self.now);
            row.priority = limits::DEFAULT_PRIORITY;
            row.max_attempts = limits::DEFAULT_MAX_ATTEMPTS;
            row.attempt_tag = self.attempt_tag;
            row.put(Place::Held(pick.worker));
            client_row.numbers.put(id, task);
            worker.held.push_back(&mut self.tasks, task);
            worker.in_flight += 1;
            worker.bytes += bytes;
            count += 1;
            let assignment = AssignmentId(u64::from(self.attempt_tag) << 32 | u64::from(task));
            effects.assign(worker.peer, assignment, Assignment::first(name, payload));
            if takes_turns || !worker.stays.contains(&worker.in_flight) || !worker.has_room() {
                break Went::OnePart;
            }
        };
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
        went
    }

    /// Ends the tasks at the head of a worker's results, as long as nothing waits for the room that they leave.
    #[inline]
    fn finish_some<'a>(
        &mut self,
        worker: u32,
        results: &mut impl Iterator<Item = Result<'a>>,
        effects: &mut impl Effects<'a>,
    ) -> Went<Result<'a>> {
        let row = &mut self.workers[worker];
        if self.queued > 0 || self.stopping.is_some() || row.stalled {
            return results.next().map_or(Went::Through, Went::To);
        }
        let (mut count, mut bytes) = (0, 0);
        let went = loop {
            let (assignment, payload) = match results.next() {
                Some(result) => result,
                None => break Went::Through,
            };
            let (tag, task) = ((assignment.0 >> 32) as u32, assignment.0 as u32);
            let usual = self.tasks.get(task).filter(|task| {
                task.attempt_tag == tag
                    && task.place() == Place::Held(worker)
                    && task.is_wanted()
                    && task.extra.is_none()
                    && task.timer_slot == NO_SLOT
            });
            let Some(found) = usual else { break Went::To((assignment, payload)) };
            let (client, id, action) = (found.client, found.client_id, found.action);
            let (client_row, action_row) = (&mut self.clients[client], &mut self.actions[action]);
            if client_row.gone || action_row.offers.workers == 0 {
                break Went::To((assignment, payload));
            }
            row.held.remove(&mut self.tasks, task);
            let (tasks, waiters) = (&self.tasks, &self.waiters);
            let id_of = |entry| super::clients::client_id_of(tasks, waiters, entry);
            client_row.numbers.remove(&self.hasher, id, Wait::First(task).entry(), id_of);
            effects.result(client_row.peer, id, payload);
            let kept = std::mem::replace(&mut self.tasks[task].payload, Kept::NOTHING);
            self.tasks.vacate(task);
            client_row.bytes -= kept.len();
            bytes += kept.len();
            self.payloads.release(kept);
            action_row.running -= 1;
            count += 1;
        };
        if count > 0 {
            row.finished_at = self.now;
            row.in_flight -= count;
            row.bytes -= bytes;
            row.done += u64::from(count);
            self.bytes -= bytes;
            self.owed -= count as usize;
            self.counts.done += u64::from(count);
            self.choice.update(&mut self.workers, &mut self.actions, worker, Change::Other);
        }
        went
    }
}

//! Bringing tasks and workers together: into queues, out of queues, over to workers.

use super::choice::{Change, Pick};
use super::slab::NONE;
use super::task::{Place, Task};
use super::turns::{NextTurn, Turn, Turns};
use super::watching::STALL;
use super::{AssignmentId, Effects, Peer, Scheduler};

impl Scheduler {
    /// Puts a task, which is nowhere, into its queue.
    pub(super) fn enqueue(&mut self, task: u32, first: bool) {
        let index = self.tasks[task].action;
        let action = &mut self.actions[index];
        if first {
            self.flows.push_front(&mut action.queue, &mut self.tasks, task);
        } else {
            self.flows.push_back(&mut action.queue, &mut self.tasks, task);
        }
        self.note_queued(index, 1);
    }

    /// So many tasks more stand in an action's queue.
    pub(super) fn note_queued(&mut self, index: u32, count: usize) {
        self.queued += count;
        let action = &mut self.actions[index];
        if action.in_backlog == NONE {
            action.in_backlog = self.backlog.len() as u32;
            self.backlog.push(index);
        }
    }

    /// Takes a task out of its queue.
    pub(super) fn unqueue(&mut self, task: u32) {
        let action = self.tasks[task].action;
        self.flows.remove(&mut self.actions[action].queue, &mut self.tasks, task);
        self.note_unqueued(action, 1);
    }

    /// So many tasks fewer stand in an action's queue.
    pub(super) fn note_unqueued(&mut self, index: u32, count: usize) {
        self.queued -= count;
        let action = &mut self.actions[index];
        if action.queue.is_empty() {
            let at = std::mem::replace(&mut action.in_backlog, NONE);
            self.backlog.swap_remove(at as usize);
            if let Some(moved) = self.backlog.get(at as usize) {
                self.actions[*moved].in_backlog = at;
            }
        }
    }

    /// Gives a task, which is nowhere, to the worker picked for it.
    #[inline]
    pub(super) fn assign<'a>(&mut self, task: u32, pick: Pick, effects: &mut impl Effects<'a>) {
        self.choice.picked(&mut self.actions, pick);
        self.hand_over(task, pick.worker, effects);
    }

    #[inline]
    fn hand_over<'a>(&mut self, task: u32, worker: u32, effects: &mut impl Effects<'a>) {
        let peer = self.move_to(task, worker);
        effects.assign(peer, self.assignment_id(task), self.details(task));
    }

    /// Writes down that a worker has a task, which is nowhere, as a new attempt. Says who that is.
    #[inline(always)]
    pub(super) fn hold(&mut self, task: u32, worker: u32) -> Peer {
        self.attempt_tag = self.attempt_tag.checked_add(1).unwrap_or(1);
        let row = &mut self.tasks[task];
        row.attempt_tag = self.attempt_tag;
        row.put(Place::Held(worker));
        row.recalled = false;
        self.actions[row.action].running += 1;
        let bytes = row.payload.len();
        let row = &mut self.workers[worker];
        row.held.add(AssignmentId::new(self.attempt_tag, task));
        row.in_flight += 1;
        row.bytes += bytes;
        row.peer
    }

    /// Moves a task, which is nowhere, to a worker that has room, as a new attempt. Says who that is.
    #[inline(always)]
    pub(super) fn move_to(&mut self, task: u32, worker: u32) -> Peer {
        debug_assert!(
            self.workers[worker].has_room()
                || self.workers[worker].puller.is_some() && self.workers[worker].takes_another(),
            "worker '{}' is given a task over its credits",
            self.workers[worker].id
        );
        let peer = self.hold(task, worker);
        if !self.tasks[task].is_usual() {
            // The limit on its waiting is met; its deadline stays.
            self.wheel.clear(&mut self.tasks, task);
            let deadline = self.tasks.deadline(task);
            if deadline != Task::NEVER {
                self.wheel.set(&mut self.tasks, task, deadline);
            }
            if self.tasks.extra(task).is_some() {
                self.arm_background(task);
            }
        }
        let row = &self.workers[worker];
        if row.in_flight == row.threads + 1 {
            let stall_at = self.now.after(STALL);
            if stall_at < self.workers[worker].check_at {
                self.set_check(worker, stall_at);
            }
        }
        self.choice.update(&mut self.workers, &mut self.actions, worker, Change::Assigned);
        peer
    }

    /// Takes a task from its worker; it is nowhere then.
    #[inline]
    pub(super) fn take_back(&mut self, task: u32, worker: u32) {
        let assignment = self.assignment_id(task);
        let row = &mut self.workers[worker];
        row.held.remove(&self.tasks, assignment);
        row.in_flight -= 1;
        let task = &mut self.tasks[task];
        row.bytes -= task.payload.len();
        task.put(Place::Moving);
        self.actions[task.action].running -= 1;
    }

    /// Gives an action's waiting tasks to workers while any has room.
    pub(super) fn serve<'a>(&mut self, action: u32, effects: &mut impl Effects<'a>) {
        if self.stopping.is_some() {
            return;
        }
        while let Some(row) = self.actions.get(action).filter(|row| !row.queue.is_empty()) {
            let waiting = row.queue.len();
            let Some(pick) = self.choice.pick(&row.offers) else {
                return self.rouse(action, waiting, effects);
            };
            let Some(task) = self.take(action) else { return };
            self.assign(task, pick, effects);
        }
    }

    /// Takes an action's next task out of its queue.
    pub(super) fn take(&mut self, action: u32) -> Option<u32> {
        let row = &mut self.actions[action];
        let task = self.flows.take(&mut row.queue, &mut self.tasks)?;
        self.services += 1;
        row.served = self.services;
        self.note_unqueued(action, 1);
        Some(task)
    }

    /// Gives a worker waiting tasks while it has room.
    #[inline]
    pub(super) fn feed<'a>(&mut self, worker: u32, effects: &mut impl Effects<'a>) {
        if self.may_feed(worker) {
            self.feed_now(worker, effects);
        }
    }

    fn feed_now<'a>(&mut self, worker: u32, effects: &mut impl Effects<'a>) {
        let group = self.workers[worker].group;
        if let [action] = *self.choice.actions(group) {
            while self.may_feed(worker) && self.give(action, worker, effects) {}
            return;
        }
        // Mostly it has room for one task, and looking once is enough for it.
        if !self.next_action(group).is_some_and(|action| self.give(action, worker, effects))
            || !self.may_feed(worker)
        {
            return;
        }
        let mut turns = Turns::default();
        self.each_turn(group, |turn| turns.add(turn));
        while let Some(action) = turns.take_next() {
            self.give(action, worker, effects);
            if !self.may_feed(worker) {
                return;
            }
            if let Some(turn) = self.turn_of(action) {
                turns.add(turn);
            }
        }
    }

    #[inline]
    fn may_feed(&self, worker: u32) -> bool {
        self.queued > 0 && self.stopping.is_none() && self.workers[worker].has_room()
    }

    /// Gives a worker with room an action's next task. Says whether there was one.
    fn give<'a>(&mut self, action: u32, worker: u32, effects: &mut impl Effects<'a>) -> bool {
        let Some(task) = self.take(action) else { return false };
        self.hand_over(task, worker, effects);
        true
    }

    /// Of the actions that a group offers and that have tasks waiting, the one to serve.
    pub(super) fn next_action(&self, group: u32) -> Option<u32> {
        let mut next = NextTurn::default();
        self.each_turn(group, |turn| next.add(turn));
        next.action()
    }

    /// Calls `take` with each of the actions that a group offers and that have tasks waiting.
    pub(super) fn each_turn(&self, group: u32, mut take: impl FnMut(Turn)) {
        let offered = self.choice.actions(group);
        if self.backlog.len() < offered.len() {
            let waiting = self.backlog.iter().filter(|action| offered.binary_search(action).is_ok());
            waiting.filter_map(|action| self.turn_of(*action)).for_each(take);
        } else {
            offered.iter().filter_map(|action| self.turn_of(*action)).for_each(&mut take);
        }
    }

    /// What an action's turn depends on, if it has tasks waiting.
    fn turn_of(&self, action: u32) -> Option<Turn> {
        let row = &self.actions[action];
        let next = self.flows.peek(&row.queue, &self.tasks)?;
        Some(Turn { rank: next.rank, priority: next.priority, served: row.served, action })
    }
}

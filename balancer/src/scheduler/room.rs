//! How much work the workers here can take up soon, for whoever fetches it from elsewhere.

use std::collections::HashMap;
use std::time::Duration;

use super::Scheduler;

impl Scheduler {
    /// For each action that workers here offer and take now: how many tasks of it they can have done, begun or next within
    /// `ahead`, by their threads, their windows and the mean time that they report. A worker that offers several
    /// actions counts for each.
    pub fn room_ahead(&self, ahead: Duration) -> Vec<(&str, usize)> {
        let mut room: HashMap<u32, usize> = HashMap::new();
        for (_, worker) in self.workers.iter().filter(|(_, worker)| !worker.draining) {
            let ahead = u64::try_from(ahead.as_nanos()).unwrap_or(u64::MAX);
            let per_thread = worker.service_ns.map_or(1, |ns| (ahead / ns.max(1)).max(1));
            // A pull worker tells nothing, and mostly runs one task at a time.
            let threads = if worker.puller.is_some() { 1 } else { worker.threads };
            let tasks = u64::from(threads).saturating_mul(per_thread).min(u64::from(worker.window));
            for action in self.choice.actions(worker.group) {
                *room.entry(*action).or_default() += usize::try_from(tasks).unwrap_or(usize::MAX);
            }
        }
        room.into_iter().map(|(action, tasks)| (&*self.actions[action].name, tasks)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::{Config, Event, Peer, Registration, Time};

    fn register(scheduler: &mut Scheduler, index: u32, service_ns: Option<u64>, actions: Vec<&str>) {
        let registration = Registration {
            request: 1,
            worker_id: &format!("worker-{index}"),
            threads: 4,
            window: 100,
            weight: 1,
            service_ns,
            actions,
            heartbeats: true,
            held: vec![],
        };
        let peer = Peer { index, generation: 1 };
        scheduler.handle(Time(0), Event::Register { peer, registration }, &mut Vec::new());
    }

    #[test]
    fn room_ahead_is_the_threads_times_what_they_can_do_and_at_most_the_window() {
        let mut scheduler = Scheduler::new(Config::default());
        register(&mut scheduler, 0, None, vec!["a"]);
        register(&mut scheduler, 1, Some(10_000_000), vec!["a", "b"]);
        register(&mut scheduler, 2, Some(10), vec!["c"]);
        let room = |scheduler: &Scheduler| {
            let mut room: Vec<(String, usize)> = scheduler
                .room_ahead(Duration::from_millis(100))
                .into_iter()
                .map(|(action, tasks)| (action.to_owned(), tasks))
                .collect();
            room.sort();
            room
        };
        assert_eq!(room(&scheduler), [("a".into(), 4 + 40), ("b".into(), 40), ("c".into(), 100)]);
        let peer = Peer { index: 1, generation: 1 };
        scheduler.handle(Time(0), Event::Drain { peer, request: 2, resume: false }, &mut Vec::new());
        assert_eq!(room(&scheduler), [("a".into(), 4), ("c".into(), 100)]);
    }
}

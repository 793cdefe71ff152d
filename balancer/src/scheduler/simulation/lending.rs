//! Other balancers in the simulation: a worker that offers nothing and is lent tasks, of which it takes some, loses some,
//! and gives some back; and a client whose tasks are theirs, and are never lent on.

use super::*;

impl Simulation {
    /// Other balancers come, as a worker and as a client. They stay to the end.
    pub(super) fn others_join(&mut self) {
        let peer = Peer::insider(0);
        let registration = Registration {
            request: 0,
            worker_id: "other balancers",
            threads: 64,
            window: 64,
            weight: 1,
            service_ns: None,
            heartbeats: true,
            actions: Vec::new(),
            held: Vec::new(),
        };
        let worker = SimWorker {
            id: "other balancers".into(),
            threads: 64,
            window: 64,
            heartbeats: true,
            lends: true,
            ..SimWorker::default()
        };
        self.books.workers.insert(peer, worker);
        self.handle(Event::Register { peer, registration });
        let guests = Peer::insider(1);
        self.books.clients.insert(guests, BTreeMap::new());
        self.handle(Event::ClientJoined { peer: guests });
    }

    /// Tasks are lent, or something becomes of one that is.
    pub(super) fn lends_or_takes_back(&mut self) {
        let Some(peer) = self.any_worker(|worker| worker.lends) else { return };
        let held = self.books.workers[&peer].holds.len();
        if held == 0 || self.random.bool() {
            return self.lends(peer);
        }
        let at = self.random.usize(..held);
        let hold = self.books.workers[&peer].holds[at];
        match self.random.u8(..4) {
            0 => {
                self.books.taken(hold.serial);
                self.scheduler.lent_is_taken(self.now, hold.assignment);
                self.assert_the_scheduler_is_sound();
            }
            1 => self.comes_back(peer, at),
            // Its host is lost.
            2 => self.answer(peer, at, Finish::Retry("its host is silent")),
            // Said of what is over, or never was.
            _ => {
                let answered = self.answered.last().map(|(_, assignment)| *assignment);
                let nonsense = answered.unwrap_or(AssignmentId(self.random.u64(..)));
                self.scheduler.lent_is_taken(self.now, nonsense);
                let mut effects = Vec::new();
                self.scheduler.lent_comes_back(self.now, peer, nonsense, &mut effects);
                assert!(effects.is_empty(), "{effects:?}");
                self.assert_the_scheduler_is_sound();
            }
        }
    }

    fn lends(&mut self, peer: Peer) {
        let action = ACTIONS[self.random.usize(..ACTIONS.len())];
        let age = Duration::from_millis(self.random.u64(..200));
        let most = self.random.usize(..8);
        let waiting = self.scheduler.waiting_actions(self.now, age, self.random.usize(..8), 8);
        let is_waited_for = waiting.contains(&action);
        let mut effects = Vec::new();
        let lent = self.scheduler.lend(self.now, peer, action, (age, most), &mut effects);
        assert_eq!(lent, effects.len(), "{effects:?}");
        assert!(lent <= most && (lent == 0 || is_waited_for));
        if lent > 0 {
            self.books.seen.insert("lent");
        }
        self.carry_out(effects);
        // Other balancers' own tasks are not lent on.
        let guests = &self.books.clients[&Peer::insider(1)];
        for hold in &self.books.workers[&peer].holds {
            assert!(!guests.values().any(|serial| *serial == hold.serial), "a guest is lent on");
        }
    }

    fn comes_back(&mut self, peer: Peer, at: usize) {
        let Some(worker) = self.books.workers.get_mut(&peer) else { return };
        let hold = worker.holds.remove(at);
        self.books.seen.insert("came back");
        let waits_until = self.now.after(self.scheduler.config.default_wait);
        self.books.waits_anew(hold.serial, waits_until);
        self.answered.push((peer, hold.assignment));
        let mut effects = Vec::new();
        self.scheduler.lent_comes_back(self.now, peer, hold.assignment, &mut effects);
        self.carry_out(effects);
    }
}

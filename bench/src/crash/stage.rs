//! All processes of a run, and what befalls them.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use super::faults::{Fault, Faults};
use super::plan::{AMQP_ACTION, AMQP_QUEUE};
use super::process::{Member, Role};
use super::{CrashError, Options};
use crate::engines::Engines;

/// How often processes are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// A start that fails is tried again after this long: the port may be in use for a moment, or an engine away.
const START_AGAIN_AFTER: Duration = Duration::from_millis(200);
/// Starts of a balancer that may fail one after the other before that is a failure of its own.
const MOST_FAILED_STARTS: u32 = 300;
/// In runs shorter than this there is no time for calms.
const WITH_CALMS_FROM: Duration = Duration::from_secs(60);
/// The exit code of a Rust program that panicked.
const PANICKED: i32 = 101;

/// The processes of a run.
#[derive(Debug)]
pub(super) struct Stage {
    members: Vec<Member>,
    pub(super) engines: Option<Engines>,
    faults: Faults,
    /// Second kills that are due.
    kills: Vec<(Instant, usize)>,
    began: Instant,
    /// What was done, and when, in milliseconds since the run began.
    pub(super) story: Vec<(u64, String)>,
    pub(super) counts: BTreeMap<&'static str, u64>,
    /// Processes that ended though nobody had asked them to.
    pub(super) troubles: Vec<String>,
    failed_starts: u32,
}

impl Stage {
    pub(super) fn new(
        options: &Options,
        members: Vec<Member>,
        engines: Option<Engines>,
        began: Instant,
    ) -> Stage {
        let has_calms = options.faults_for >= WITH_CALMS_FROM;
        Stage {
            members,
            faults: Faults::new(options.seed, engines.is_some(), has_calms),
            engines,
            kills: Vec::new(),
            began,
            story: Vec::new(),
            counts: BTreeMap::new(),
            troubles: Vec::new(),
            failed_starts: 0,
        }
    }

    /// The slowest start of a balancer until it was ready.
    pub(super) fn slowest_start(&self) -> Duration {
        let balancers = self.members.iter().filter(|member| member.role == Role::Balancer);
        balancers.map(|member| member.slowest_start).max().unwrap_or_default()
    }

    pub(super) fn starts(&self) -> u64 {
        self.members.iter().map(|member| member.starts).sum()
    }

    /// Lets faults happen until a moment, or until `stop` says so.
    pub(super) fn play(&mut self, until: Instant, stop: impl Fn() -> bool) -> Result<(), CrashError> {
        let mut next = Instant::now() + Duration::from_millis(300);
        while Instant::now() < until && !stop() {
            self.look()?;
            if Instant::now() >= next && self.has_balancer() {
                let fault = self.faults.draw();
                self.befall(fault);
                next = Instant::now() + self.faults.pause(fault);
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// Has everything run, and waits until a balancer takes tasks.
    pub(super) fn settle(&mut self, patience: Duration, stop: impl Fn() -> bool) -> Result<(), CrashError> {
        self.kills.clear();
        for member in self.members.iter_mut().filter(|member| member.thaw_at.is_some()) {
            member.thaw();
        }
        if let Some(engines) = &mut self.engines {
            engines.settle().map_err(CrashError::Engines)?;
        }
        let give_up_at = Instant::now() + patience;
        while !stop() {
            self.look()?;
            let all_run = self.members.iter().all(Member::is_running);
            if all_run && self.has_ready_balancer() {
                return Ok(());
            }
            if Instant::now() >= give_up_at {
                let words =
                    self.members.iter().map(|member| format!("{}: {}", member.name, member.last_words()));
                let words: Vec<String> = words.collect();
                return Err(CrashError::NotReady { waited: patience, words: words.join("\n") });
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// Kills every balancer, and has them started again.
    pub(super) fn restart_balancers(&mut self) {
        let now = Instant::now();
        for index in self.of(Role::Balancer) {
            self.members[index].kill();
            self.members[index].start_at = Some(now);
        }
        self.tell(Fault::KillBalancer, "at the end, to look again");
    }

    /// Looks after the processes: notices ends, starts what is due, thaws, kills.
    pub(super) fn look(&mut self) -> Result<(), CrashError> {
        let now = Instant::now();
        let due = |(at, _): &(Instant, usize)| *at <= now;
        let kills: Vec<usize> = self.kills.iter().filter(|kill| due(kill)).map(|(_, index)| *index).collect();
        self.kills.retain(|kill| !due(kill));
        for index in kills {
            self.kill(index, Duration::ZERO);
        }
        for index in 0..self.members.len() {
            self.look_at(index, now)?;
        }
        Ok(())
    }

    fn look_at(&mut self, index: usize, now: Instant) -> Result<(), CrashError> {
        let member = &mut self.members[index];
        if member.thaw_at.is_some_and(|at| at <= now) {
            member.thaw();
        }
        if member.is_ready() && member.role == Role::Balancer {
            self.failed_starts = 0;
        }
        if let Some(status) = member.take_end() {
            let (was_asked, role, words) = (member.is_to_end, member.role, member.last_words());
            let name = member.name.clone();
            member.start_at.get_or_insert(now + START_AGAIN_AFTER);
            // A worker dies by the tasks that kill it.
            let is_killed = status.code().is_none() && role == Role::Worker;
            if !was_asked && !is_killed || status.code() == Some(PANICKED) {
                self.ended_unasked(
                    index,
                    &format!("{name} ended by itself ({status}): {words}"),
                    status.code(),
                );
            }
            if self.failed_starts > MOST_FAILED_STARTS {
                return Err(CrashError::NotReady { waited: self.began.elapsed(), words });
            }
        }
        let member = &mut self.members[index];
        if !member.is_running() && member.start_at.is_some_and(|at| at <= now) {
            member.start().map_err(|source| CrashError::Start { name: member.name.clone(), source })?;
        }
        Ok(())
    }

    /// Some ends are no failure: an address that another program has for a moment; with engines a balancer that finds
    /// one of them away at its start, or another balancer in its place.
    fn ended_unasked(&mut self, index: usize, sentence: &str, code: Option<i32>) {
        self.failed_starts += 1;
        let is_excused = sentence.contains("in use") || self.engines.is_some();
        if is_excused && code == Some(1) {
            let name = &self.members[index].name;
            *self.counts.entry("start or run of a process ended by itself, excused").or_default() += 1;
            log::info!("{name} is started again: {sentence}");
            return;
        }
        self.troubles.push(sentence.to_owned());
    }

    fn of(&self, role: Role) -> Vec<usize> {
        (0..self.members.len()).filter(|index| self.members[*index].role == role).collect()
    }

    fn has_balancer(&mut self) -> bool {
        self.has_ready_balancer() || self.engines.is_some()
    }

    fn has_ready_balancer(&mut self) -> bool {
        self.members.iter_mut().any(|member| member.role == Role::Balancer && member.is_ready())
    }

    fn kill(&mut self, index: usize, away: Duration) {
        self.members[index].kill();
        self.members[index].start_at = Some(Instant::now() + away);
    }

    fn one_of(&mut self, role: Role) -> usize {
        let members = self.of(role);
        members[self.faults.which(members.len())]
    }

    fn befall(&mut self, fault: Fault) {
        let away = self.faults.away(fault);
        let now = Instant::now();
        let what = match fault {
            Fault::KillBalancer | Fault::KillWorker => {
                let role = if fault == Fault::KillWorker { Role::Worker } else { Role::Balancer };
                let index = self.one_of(role);
                self.kill(index, away);
                self.members[index].name.clone()
            }
            Fault::KillBalancerTwice => {
                let index = self.one_of(Role::Balancer);
                self.kill(index, Duration::ZERO);
                let again = now + self.faults.soon();
                self.kills.push((again, index));
                self.members[index].name.clone()
            }
            Fault::KillAll => {
                for index in 0..self.members.len() {
                    self.kill(index, away);
                }
                "everybody".into()
            }
            Fault::StopBalancer | Fault::StopWorker => {
                let role = if fault == Fault::StopWorker { Role::Worker } else { Role::Balancer };
                let index = self.one_of(role);
                self.members[index].ask_to_leave();
                self.members[index].name.clone()
            }
            Fault::FreezeBalancer | Fault::FreezeWorker => {
                let role = if fault == Fault::FreezeWorker { Role::Worker } else { Role::Balancer };
                let index = self.one_of(role);
                self.members[index].freeze_until(now + away);
                self.members[index].name.clone()
            }
            Fault::KillEngine => {
                let Some(engines) = &mut self.engines else { return };
                let name = engines.names()[self.faults.which(engines.names().len())];
                if !engines.strike(name, away) {
                    return;
                }
                name.to_owned()
            }
            Fault::Calm => String::new(),
        };
        self.tell(fault, &what);
    }

    fn tell(&mut self, fault: Fault, what: &str) {
        *self.counts.entry(fault.name()).or_default() += 1;
        let at = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.story.push((at, format!("{}: {what}", fault.name())));
    }

    /// How often something got SIGKILL on purpose.
    pub(super) fn kills(&self) -> u64 {
        let of_kind = |(fault, name): &(Fault, &'static str)| {
            if fault.is_kill() { self.counts.get(name).copied().unwrap_or(0) } else { 0 }
        };
        Fault::ALL.iter().map(of_kind).sum()
    }
}

/// The addresses of a balancer.
#[derive(Debug, Clone)]
pub(super) struct Addresses {
    pub(super) clients: String,
    pub(super) workers: String,
}

/// A balancer of a run.
pub(super) fn balancer(
    number: usize,
    addresses: &Addresses,
    options: &Options,
    seed: u64,
    folder: &Path,
    variables: &[(String, String)],
) -> Member {
    let mut arguments: Vec<String> =
        ["balancer", "--clients", &addresses.clients, "--workers", &addresses.workers]
            .map(String::from)
            .to_vec();
    arguments.extend(["--blob-threshold".into(), super::plan::BLOB_THRESHOLD.to_string()]);
    arguments.extend(["--heartbeat", "500ms", "--silence", "2s"].map(String::from));
    // What a seed tries beside the usual settings.
    if seed.is_multiple_of(3) {
        arguments.extend(["--reactors", "2"].map(String::from));
    }
    if variables.is_empty() {
        arguments.extend(["--data".into(), folder.join("data").display().to_string()]);
        if seed % 4 == 1 {
            arguments.extend(["--durability", "interval:50ms"].map(String::from));
        }
    } else {
        // An answer that RabbitMQ has lost is waited for no longer than that; a task runs for 5 s at most.
        let worker = format!("{AMQP_ACTION}={AMQP_ACTION}?in_flight=64&limit=20s");
        arguments.extend(["--amqp-queue", AMQP_QUEUE, "--amqp-worker", &worker].map(String::from));
    }
    let mut variables = variables.to_vec();
    variables.push(("REPARTO_LOG".into(), std::env::var("REPARTO_LOG").unwrap_or_else(|_| "info".into())));
    let name = format!("balancer-{number}");
    Member::new(name, Role::Balancer, &options.program, folder, arguments, variables)
}

/// A worker of a run, at these balancers.
pub(super) fn worker(
    number: usize,
    actions: &[&str],
    balancers: &[Addresses],
    options: &Options,
    folder: &Path,
) -> Member {
    let name = format!("worker-{number}");
    let log = folder.join(format!("{name}.runs"));
    let mut arguments: Vec<String> =
        ["bench", "crash-worker", "--id", &name, "--threads", "4"].map(String::from).to_vec();
    arguments.extend(["--log".into(), log.display().to_string()]);
    for action in actions {
        arguments.extend(["--action", action].map(String::from));
    }
    for balancer in balancers {
        arguments.extend(["--balancer".into(), balancer.workers.clone()]);
    }
    Member::new(name, Role::Worker, &options.program, folder, arguments, Vec::new())
}

/// A worker of a run that knows only AMQP. It finds RabbitMQ in the variables.
pub(super) fn amqp_worker(
    number: usize,
    options: &Options,
    folder: &Path,
    variables: &[(String, String)],
) -> Member {
    let name = format!("amqp-worker-{number}");
    let log = folder.join(format!("{name}.runs"));
    let mut arguments: Vec<String> = ["bench", "crash-amqp-worker"].map(String::from).to_vec();
    arguments.extend(["--log".into(), log.display().to_string()]);
    Member::new(name, Role::Worker, &options.program, folder, arguments, variables.to_vec())
}

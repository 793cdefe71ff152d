//! `reparto demo --background` and `--engines`: tasks are handed over, balancers killed with SIGKILL and started again,
//! and every result is fetched and checked, twice.

use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::HumanCount;
use reparto_client::{Accepted, Client, ClientError, Completion, Fetched, TaskId};
use serde::Serialize;

use super::files::Documents;
use super::plan::Plan;
use super::processes::{ProcessIndex, Processes};
use super::{Args, DemoError, THREADS, addresses};

/// Tasks on their way to be accepted at most.
const MOST_ON_THEIR_WAY: usize = 256;
/// Results asked for at a time.
const ASKED_AT_ONCE: usize = 256;
/// How long a result is waited for. Reached only if something is lost.
const FETCH_WITHIN: Duration = Duration::from_secs(120);
/// How long a balancer is looked for.
const RECONNECT_FOR: Duration = Duration::from_secs(90);
/// Time between a kill and the next start, so that it can be seen.
const DOWN_FOR: Duration = Duration::from_millis(500);
/// How often a start on a former address is tried: for a moment another program may have it.
const MOST_STARTS: u32 = 50;
/// Time between two tries.
const START_AGAIN_AFTER: Duration = Duration::from_millis(100);
/// How long an answer is waited for before looking around.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What came of it.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    seed: u64,
    tasks: u64,
    accepted: u64,
    /// Balancers killed with SIGKILL.
    kills: u64,
    /// Accepted tasks that had not ended at the first kill.
    open_at_the_kill: u64,
    /// The longest time without an ACCEPTED from the first kill on, in milliseconds.
    outage_ms: u64,
    fetched: u64,
    /// Fetched once more, after one more kill, and the same.
    fetched_again: u64,
    wrong: u64,
    /// Handed in once more under their keys, and given another task.
    doubled: u64,
    lost: u64,
    seconds: f64,
    troubles: Vec<String>,
}

impl Report {
    pub(super) fn is_good(&self) -> bool {
        self.accepted == self.tasks && self.lost == 0 && self.wrong == 0 && self.doubled == 0
    }

    pub(super) fn troubles(&self) -> impl Iterator<Item = &String> {
        self.troubles.iter()
    }

    fn trouble(&mut self, sentence: String) {
        const MOST: usize = 5;
        if self.troubles.len() < MOST {
            self.troubles.push(sentence);
        }
    }

    pub(super) fn write(&self, out: &mut impl Write, json: bool) -> io::Result<()> {
        if json {
            serde_json::to_writer(&mut *out, self)?;
            return writeln!(out);
        }
        let count = |number: u64| HumanCount(number).to_string();
        writeln!(out)?;
        writeln!(out, "accepted         {:>9} of {}", count(self.accepted), count(self.tasks))?;
        writeln!(out, "balancers killed {:>9}", count(self.kills))?;
        writeln!(out, "open at the kill {:>9}", count(self.open_at_the_kill))?;
        writeln!(out, "longest without an ACCEPTED {} ms", count(self.outage_ms))?;
        writeln!(out, "results fetched  {:>9}, all in {:.1} s", count(self.fetched), self.seconds)?;
        writeln!(out, "the same after one more kill {}", count(self.fetched_again))?;
        writeln!(out, "doubled {} wrong {}", self.doubled, self.wrong)?;
        writeln!(out, "lost {}", self.lost)
    }
}

/// The balancers of the show.
pub(super) struct Balancers<'a> {
    processes: &'a Processes,
    /// Flags and variables beside the addresses.
    flags: Vec<String>,
    variables: Vec<(String, String)>,
    members: Vec<Member>,
}

struct Member {
    name: String,
    process: ProcessIndex,
    clients: String,
    workers: String,
}

impl<'a> Balancers<'a> {
    /// Starts one after the other. With engines the second one may stand by, and is ready only when it is needed.
    pub(super) fn start(
        processes: &'a Processes,
        count: usize,
        flags: Vec<String>,
        variables: Vec<(String, String)>,
    ) -> Result<Balancers<'a>, DemoError> {
        let mut balancers = Balancers { processes, flags, variables, members: Vec::new() };
        for number in 1..=count {
            let name = if count == 1 { "balancer".to_owned() } else { format!("balancer-{number}") };
            let member = balancers.launch(&name, "127.0.0.1:0", "127.0.0.1:0")?;
            balancers.members.push(member);
        }
        Ok(balancers)
    }

    fn launch(&self, name: &str, clients: &str, workers: &str) -> Result<Member, DemoError> {
        let mut arguments = vec!["balancer", "--clients", clients, "--workers", workers];
        arguments.extend(self.flags.iter().map(String::as_str));
        let (process, first_line) = self.processes.start_with(name, &arguments, &self.variables)?;
        let line = self.processes.ready(process, &first_line)?;
        let (clients, workers) =
            addresses(&line).ok_or_else(|| format!("{name} said '{line}' instead of its addresses"))?;
        let (clients, workers) = (clients.to_owned(), workers.to_owned());
        Ok(Member { name: name.to_owned(), process, clients, workers })
    }

    pub(super) fn clients(&self) -> Vec<String> {
        self.members.iter().map(|member| member.clients.clone()).collect()
    }

    fn kill(&self, which: usize) -> Result<(), DemoError> {
        let member = &self.members[which];
        let failed = |error| format!("{} could not be killed: {error}", member.name);
        Ok(self.processes.kill(member.process).map_err(failed)?)
    }

    /// Starts one again on its former addresses.
    fn start_again(&mut self, which: usize) -> Result<(), DemoError> {
        let Member { name, clients, workers, .. } = &self.members[which];
        let mut failed = DemoError::Failed(format!("{name} is not started again"));
        for _ in 0..MOST_STARTS {
            match self.launch(name, clients, workers) {
                Ok(member) => {
                    self.members[which] = member;
                    return Ok(());
                }
                Err(DemoError::Interrupted) => return Err(DemoError::Interrupted),
                Err(error) => failed = error,
            }
            std::thread::sleep(START_AGAIN_AFTER);
        }
        Err(failed)
    }

    fn introduction(&self) -> String {
        let one = |member: &Member| {
            format!("{} at {} (process {})", member.name, member.clients, self.processes.id(member.process))
        };
        self.members.iter().map(one).collect::<Vec<_>>().join(", ")
    }

    /// Every worker registers with all of them.
    fn start_workers(&self, workers: u32) -> Result<(), DemoError> {
        let threads = THREADS.to_string();
        let mut starting = Vec::new();
        for number in 1..=workers {
            let id = format!("worker-{number}");
            let mut arguments = vec!["worker", "--id", &id, "--threads", &threads];
            for member in &self.members {
                arguments.extend(["--balancer", &member.workers]);
            }
            starting.push(self.processes.start(&id, &arguments)?);
        }
        for (process, first_line) in starting {
            self.processes.ready(process, &first_line)?;
        }
        Ok(())
    }
}

/// Shows it, with balancers that run already.
pub(super) fn show(
    args: &Args,
    processes: &Processes,
    balancers: Balancers<'_>,
) -> Result<Report, DemoError> {
    let mut random = fastrand::Rng::with_seed(args.seed);
    let plan = Plan::new(args.tasks, args.seed, Documents::gather(Path::new("."), &mut random));
    balancers.start_workers(args.workers)?;
    say(&format!("Up: {};\nand {} workers of {THREADS} threads.", balancers.introduction(), args.workers));
    let client = Client::builder()
        .balancers(balancers.clients())
        .agent("reparto-demo")
        .reconnect_for(RECONNECT_FOR)
        .connect()
        .map_err(|error| error.to_string())?;
    let report = Report { seed: args.seed, tasks: args.tasks, ..Report::default() };
    // Another run on the same engines must not meet this one's keys.
    let run = format!("demo-{}-{}", std::process::id(), random_suffix());
    let mut show = Show { plan, run, processes, balancers, client, ids: Vec::new(), report };
    let began = Instant::now();
    show.hand_over()?;
    show.report.fetched = show.fetch_all()?;
    show.report.seconds = began.elapsed().as_secs_f64();
    say(&format!(
        "{} of {} results fetched, each checked.",
        HumanCount(show.report.fetched),
        HumanCount(show.report.tasks)
    ));
    show.look_again()?;
    Ok(show.report)
}

fn random_suffix() -> String {
    format!("{:08x}", fastrand::u32(..))
}

fn say(sentence: &str) {
    // Without standard error there is nobody to tell.
    let _ = writeln!(io::stderr().lock(), "{sentence}");
}

struct Show<'a> {
    plan: Plan,
    /// With which this run's idempotency keys begin.
    run: String,
    processes: &'a Processes,
    balancers: Balancers<'a>,
    client: Client,
    /// By the tasks' numbers.
    ids: Vec<Option<TaskId>>,
    report: Report,
}

impl Show<'_> {
    /// Hands all tasks over, as fast as they are accepted. Halfway the balancer is killed, and started again.
    fn hand_over(&mut self) -> Result<(), DemoError> {
        let tasks = self.plan.tasks;
        say(&format!("{} background tasks are handed over.", HumanCount(tasks)));
        let client = self.client.clone();
        let queue = client.accepted_queue(MOST_ON_THEIR_WAY);
        self.ids = vec![None; usize::try_from(tasks).unwrap_or(usize::MAX)];
        let (mut number, mut killed_at, mut is_back) = (0, None, false);
        let mut last_accepted = Instant::now();
        let mut batch: Vec<Completion<Accepted>> = Vec::new();
        while self.report.accepted < tasks {
            self.look()?;
            while number < tasks {
                let key = self.key(number);
                let job = self.plan.job(number);
                let task = client.task(job.action.name()).payload(job.payload).idempotency_key(&key);
                match queue.try_submit(number, task) {
                    Ok(()) => number += 1,
                    Err(ClientError::Full { .. }) => break,
                    Err(error) => return Err(format!("task {number} cannot be handed in: {error}").into()),
                }
            }
            queue.recv_batch_timeout(&mut batch, LOOK_EVERY);
            for completion in batch.drain(..) {
                let accepted = completion
                    .outcome
                    .map_err(|failure| format!("task {} was not accepted: {failure}", completion.tag))?;
                self.ids[completion.tag as usize] = Some(accepted.task_id);
                self.report.accepted += 1;
                if killed_at.is_some() {
                    self.report.outage_ms = self.report.outage_ms.max(millis_since(last_accepted));
                }
                last_accepted = Instant::now();
            }
            if killed_at.is_none() && self.report.accepted * 2 >= tasks {
                self.report.open_at_the_kill = self.count_open()?;
                self.kill_first()?;
                killed_at = Some(Instant::now());
            }
            if !is_back && killed_at.is_some_and(|at: Instant| at.elapsed() >= DOWN_FOR) {
                self.back_again()?;
                is_back = true;
            }
        }
        if !is_back {
            self.back_again()?;
        }
        say(&format!("All {} are accepted.", HumanCount(tasks)));
        Ok(())
    }

    fn key(&self, number: u64) -> String {
        format!("{}-{number}", self.run)
    }

    fn look(&self) -> Result<(), DemoError> {
        if self.processes.interrupted() { Err(DemoError::Interrupted) } else { Ok(()) }
    }

    fn kill_first(&mut self) -> Result<(), DemoError> {
        let name = self.balancers.members[0].name.clone();
        self.balancers.kill(0)?;
        self.report.kills += 1;
        say(&format!(
            "At {} ACCEPTED {name} is killed (SIGKILL); {} of them have not ended.",
            HumanCount(self.report.accepted),
            HumanCount(self.report.open_at_the_kill)
        ));
        Ok(())
    }

    fn back_again(&mut self) -> Result<(), DemoError> {
        let began = Instant::now();
        self.balancers.start_again(0)?;
        let member = &self.balancers.members[0];
        let (name, process) = (&member.name, self.processes.id(member.process));
        say(&format!(
            "{name} is back (process {process}), ready {} ms after its start.",
            millis_since(began)
        ));
        Ok(())
    }

    /// How many of the accepted have not ended.
    fn count_open(&self) -> Result<u64, DemoError> {
        let ids: Vec<TaskId> = self.ids.iter().flatten().copied().collect();
        let ask = |id: &TaskId| self.client.fetch(*id, Duration::ZERO).map_err(|error| error.to_string());
        let mut open = 0;
        for some in ids.chunks(ASKED_AT_ONCE) {
            let replies = some.iter().map(ask).collect::<Result<Vec<_>, _>>()?;
            open += replies.iter().filter(|reply| matches!(reply.wait(), Ok(Fetched::NotEnded(_)))).count()
                as u64;
        }
        Ok(open)
    }

    /// Fetches every result, and checks it; gives how many are right.
    fn fetch_all(&mut self) -> Result<u64, DemoError> {
        let mut right = 0;
        let tasks: Vec<(u64, TaskId)> =
            (0..).zip(&self.ids).filter_map(|(number, id)| Some((number, (*id)?))).collect();
        for some in tasks.chunks(ASKED_AT_ONCE) {
            self.look()?;
            let ask = |(number, id): &(u64, TaskId)| {
                let reply = self.client.fetch(*id, FETCH_WITHIN).map_err(|error| error.to_string())?;
                Ok::<_, String>((*number, reply))
            };
            let replies = some.iter().map(ask).collect::<Result<Vec<_>, _>>()?;
            for (number, reply) in replies {
                let found = reply.wait();
                self.look()?;
                match found {
                    Ok(Fetched::Ended(Ok(result))) if result == self.plan.job(number).expected => right += 1,
                    Ok(Fetched::Ended(outcome)) => {
                        self.report.wrong += 1;
                        let words =
                            outcome.map_or_else(|failure| failure.to_string(), |_| "another result".into());
                        self.report.trouble(format!("task {number} has a wrong outcome: {words}"));
                    }
                    Ok(Fetched::NotEnded(standing)) => {
                        self.report.lost += 1;
                        self.report
                            .trouble(format!("task {number} has not ended: it is {}", standing.state.name()));
                    }
                    Err(failure) => {
                        self.report.lost += 1;
                        self.report.trouble(format!("task {number} cannot be fetched: {failure}"));
                    }
                }
            }
        }
        Ok(right)
    }

    /// Kills the last balancer too: what is recorded stays, and a key gives its first task.
    fn look_again(&mut self) -> Result<(), DemoError> {
        let last = self.balancers.members.len() - 1;
        self.balancers.kill(last)?;
        self.report.kills += 1;
        self.balancers.start_again(last)?;
        self.report.fetched_again = self.fetch_all()?;
        let client = self.client.clone();
        let numbers: Vec<u64> = (0..self.plan.tasks).collect();
        for some in numbers.chunks(ASKED_AT_ONCE) {
            self.look()?;
            let hand_in = |number: &u64| {
                let (key, job) = (self.key(*number), self.plan.job(*number));
                let task = client.task(job.action.name()).payload(job.payload).idempotency_key(&key);
                Ok::<_, String>((*number, task.submit_background().map_err(|error| error.to_string())?))
            };
            let replies = some.iter().map(hand_in).collect::<Result<Vec<_>, _>>()?;
            for (number, reply) in replies {
                let accepted =
                    reply.wait().map_err(|failure| format!("task {number} handed in again: {failure}"))?;
                self.report.doubled += u64::from(Some(accepted.task_id) != self.ids[number as usize]);
            }
        }
        say(&format!(
            "Killed once more and started again: {} results fetched again, and no key gives a second task.",
            HumanCount(self.report.fetched_again)
        ));
        Ok(())
    }
}

fn millis_since(moment: Instant) -> u64 {
    u64::try_from(moment.elapsed().as_millis()).unwrap_or(u64::MAX).max(1)
}

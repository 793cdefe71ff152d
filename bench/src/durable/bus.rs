//! The whole life of background tasks through RabbitMQ and PostgreSQL, beside what the same RabbitMQ does alone: as many
//! messages of that size published with confirms into a quorum queue, consumed, and acknowledged.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::life::{SCENARIO, hand_in, wait_until_recorded};
use super::peer::{Balancer, Store};
use super::report::BusReport;
use super::run::{Options, Session};
use crate::engines::Engines;
use crate::peers::error::PeersError;
use crate::peers::process::{Folder, find};
use crate::peers::{Figures, Lacking};
use crate::raw::{AmqpQueue, Reparto, RepartoBackground, Workers};

/// Where Debian has the programs that are not in PATH.
const PROGRAMS: [(Lacking, &str); 2] = [
    (Lacking { program: "postgres", packages: "postgresql" }, "/usr/lib/postgresql"),
    (
        Lacking { program: "rabbitmq-server", packages: "rabbitmq-server" },
        "/usr/lib/rabbitmq/bin/rabbitmq-server",
    ),
];

/// Tasks that go through before any is counted, so that queues and connections are there.
const WARM_UP: u64 = 1_000;

/// How often it is looked how many messages are consumed.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// How long nothing may be consumed while messages are there.
const PATIENCE: Duration = Duration::from_secs(60);

/// Who has a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Reparto,
    RabbitMqAlone,
}

/// What this part needs and is not here. It is not installed by a measurement.
pub(super) fn lacking() -> Vec<Lacking> {
    let here = |program: &str, place: &str| Path::new(place).exists() || find(program).is_some();
    PROGRAMS.into_iter().filter(|(it, place)| !here(it.program, place)).map(|(it, _)| it).collect()
}

/// `None` where an engine is not here.
pub(super) fn run(session: &Session<'_>) -> Result<Option<BusReport>, PeersError> {
    if !lacking().is_empty() {
        return Ok(None);
    }
    let options = session.options;
    let folder = Folder::new_in(&options.folder)?;
    let start = || Engines::start(folder.path(), &["postgres", "rabbitmq"]).map_err(PeersError::Engines);
    let rounds = match session.attempt("PostgreSQL and RabbitMQ", start)? {
        Some(engines) => session.rounds(
            &[Way::Reparto, Way::RabbitMqAlone],
            |way| match way {
                Way::Reparto => "reparto through RabbitMQ and PostgreSQL",
                Way::RabbitMqAlone => "rabbitmq alone",
            },
            |way| match way {
                Way::Reparto => reparto(options, &engines, session.stop),
                Way::RabbitMqAlone => rabbitmq(options, &engines, session.stop),
            },
        )?,
        // What has failed is told, and no figure is there.
        None => vec![vec![None; options.rounds]; 2],
    };
    let [reparto, alone]: [Vec<Option<Figures>>; 2] =
        rounds.try_into().map_err(|_| PeersError::Options("two contenders have two rows".into()))?;
    Ok(Some(BusReport { tasks: options.bus_tasks, reparto, alone }))
}

/// Tasks a second, from the first one handed in until the last one is recorded.
fn reparto(options: &Options, engines: &Engines, stop: &AtomicBool) -> Result<Figures, PeersError> {
    let failed = PeersError::raw("reparto");
    let data = Folder::new_in(&options.folder)?;
    let store = Store::Shared {
        postgres: exported(engines, "REPARTO_POSTGRES_URL")?,
        rabbitmq: exported(engines, "REPARTO_RABBITMQ_URL")?,
        blobs: data.path(),
    };
    let balancer = Balancer::start(&options.program, &options.folder, store)?;
    let workers =
        Workers::connect(&Reparto, balancer.workers, SCENARIO.workers(), SCENARIO.size).map_err(&failed)?;
    hand_in(&RepartoBackground, balancer.clients, WARM_UP, stop)?;
    wait_until_recorded(balancer.clients, WARM_UP, stop)?;
    let tasks = options.bus_tasks;
    let began = Instant::now();
    let driven = hand_in(&RepartoBackground, balancer.clients, tasks, stop)?;
    // One more task was handed in to see the warm-up recorded.
    wait_until_recorded(balancer.clients, WARM_UP + 1 + tasks, stop)?;
    let seconds = began.elapsed().as_secs_f64();
    workers.stop().map_err(&failed)?;
    Ok(Figures { tasks_per_second: (tasks as f64 / seconds).round(), ..driven })
}

/// Messages a second, from the first one published until the last one is acknowledged by its consumer, and every one
/// confirmed to its publisher.
fn rabbitmq(options: &Options, engines: &Engines, stop: &AtomicBool) -> Result<Figures, PeersError> {
    let failed = PeersError::raw("rabbitmq");
    let (address, queue) = queue_at(exported(engines, "REPARTO_RABBITMQ_URL")?)?;
    let consumers = Workers::connect(&queue, address, SCENARIO.workers(), SCENARIO.size).map_err(&failed)?;
    hand_in(&queue, address, WARM_UP, stop)?;
    wait_until_consumed(&queue, WARM_UP, stop)?;
    let tasks = options.bus_tasks;
    let began = Instant::now();
    let driven = hand_in(&queue, address, tasks, stop)?;
    wait_until_consumed(&queue, WARM_UP + tasks, stop)?;
    let seconds = began.elapsed().as_secs_f64();
    consumers.stop().map_err(&failed)?;
    Ok(Figures { tasks_per_second: (tasks as f64 / seconds).round(), ..driven })
}

fn wait_until_consumed(queue: &AmqpQueue, messages: u64, stop: &AtomicBool) -> Result<(), PeersError> {
    let (mut consumed, mut since) = (queue.consumed(), Instant::now());
    while consumed < messages {
        if stop.load(Ordering::Relaxed) {
            return Err(PeersError::Interrupted);
        }
        if since.elapsed() > PATIENCE {
            let sentence = format!("{consumed} of {messages} messages were consumed, and then no more");
            return Err(PeersError::Engines(sentence));
        }
        thread::sleep(LOOK_EVERY);
        let now = queue.consumed();
        if now > consumed {
            (consumed, since) = (now, Instant::now());
        }
    }
    Ok(())
}

fn exported<'a>(engines: &'a Engines, name: &str) -> Result<&'a str, PeersError> {
    engines.variable(name).ok_or_else(|| PeersError::Engines(format!("scripts/services exports no {name}")))
}

/// Where `amqp://USER:PASSWORD@HOST:PORT` is, and the queue there.
fn queue_at(url: &str) -> Result<(SocketAddr, AmqpQueue), PeersError> {
    let read = || {
        let (user, address) = url.strip_prefix("amqp://")?.split_once('@')?;
        let (name, password) = user.split_once(':')?;
        Some((address.parse().ok()?, AmqpQueue::new(name, password)))
    };
    read().ok_or_else(|| PeersError::Engines("the URL of RabbitMQ cannot be read".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_of_the_script_is_read() {
        let (address, _) = queue_at("amqp://reparto:12ab@127.0.0.1:5672").unwrap();
        assert_eq!(address, ([127, 0, 0, 1], 5672).into());
        assert!(queue_at("amqp://nowhere").is_err());
    }
}

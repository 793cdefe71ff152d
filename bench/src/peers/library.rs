//! Reparto through its own client and worker libraries, with the pool's threads, beside NATS driven raw: what a
//! program that uses the libraries gets.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use reparto_client::{Client, Completion, CompletionQueue};
use reparto_worker::{Worker, WorkerHandle};

use super::report::{Contestant, Figures, LibraryReport};
use super::run::Session;
use super::server::Found;
use super::{PeersError, Scenario, Server};
use crate::raw::{Load, Measurement, RawError};

/// The shape of the load.
const SCENARIO: Scenario = Scenario { connections: 4, window: 128, size: 64 };

/// Threads of each worker's pool. Two workers are on the machine as it is.
const WORKER_THREADS: u32 = 1;

const ACTION: &str = "echo";

/// How the tables name it.
const NAME: &str = "reparto, its own libraries";

/// Time for the workers to be known to the balancer.
const READY_WITHIN: Duration = Duration::from_secs(30);

pub(super) fn run(session: &Session<'_>) -> Result<Option<LibraryReport>, PeersError> {
    let contenders = session.found_of(&[Server::Reparto, Server::Nats]);
    if contenders.is_empty() {
        return Ok(None);
    }
    let load = session.load(SCENARIO);
    let mut contestants: Vec<Contestant> =
        session.rounds(&contenders, |contender| match contender.contender.server() {
            Server::Reparto => measure(contender, &load, session.stop),
            _ => session.measure(contender, SCENARIO.workers(), &load).map(|it| Figures::from(&it)),
        })?;
    for contestant in contestants.iter_mut().filter(|it| it.server == Server::Reparto) {
        contestant.name = NAME;
    }
    Ok(Some(LibraryReport { scenario: SCENARIO, worker_threads: WORKER_THREADS, contestants }))
}

fn measure(contender: &Found, load: &Load, stop: &AtomicBool) -> Result<Figures, PeersError> {
    let (_balancer, clients, workers) = contender.start_alone()?;
    let _workers = start_workers(workers, SCENARIO.workers())?;
    drive(clients, load, stop).map(|it| Figures::from(&it))
}

/// Workers on threads of their own, ended when this is dropped.
struct Running(Vec<(WorkerHandle, thread::JoinHandle<()>)>);

impl Drop for Running {
    fn drop(&mut self) {
        for (handle, _) in &self.0 {
            handle.stop(Duration::ZERO);
        }
        for (_, thread) in self.0.drain(..) {
            let _ = thread.join();
        }
    }
}

fn start_workers(address: SocketAddr, count: usize) -> Result<Running, PeersError> {
    let mut running = Running(Vec::new());
    for _ in 0..count {
        let worker = Worker::builder()
            .balancer(address.to_string())
            .threads(WORKER_THREADS)
            .action(ACTION, |task| Ok(task.payload().clone()))
            .build()
            .map_err(|error| PeersError::Library(error.to_string()))?;
        let handle = worker.handle();
        let thread = thread::spawn(move || {
            if let Err(error) = worker.run() {
                log::error!("a worker of the bench ended: {error}");
            }
        });
        running.0.push((handle, thread));
    }
    Ok(running)
}

/// Keeps the window of each connection full, as [`raw::drive`](crate::raw::drive) does.
fn drive(address: SocketAddr, load: &Load, stop: &AtomicBool) -> Result<Measurement, PeersError> {
    let library = |error: &dyn std::fmt::Display| PeersError::Library(error.to_string());
    let mut clients = Vec::new();
    for _ in 0..load.connections {
        clients.push(Client::connect([address.to_string()]).map_err(|error| library(&error))?);
    }
    wait_for_workers(&clients[0], SCENARIO.workers())?;
    let begin = Instant::now();
    let measured: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = clients
            .iter()
            .map(|client| scope.spawn(move || closed_loop(client, load, begin, stop)))
            .collect();
        let panicked = || Err(PeersError::Library("a client's thread panicked".into()));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| panicked())).collect()
    });
    let mut all = Measurement::new(load.duration).map_err(|error| library(&error))?;
    for measurement in measured {
        all.add(&measurement?).map_err(|error| library(&error))?;
    }
    Ok(all)
}

fn wait_for_workers(client: &Client, count: usize) -> Result<(), PeersError> {
    let until = Instant::now() + READY_WITHIN;
    loop {
        let status = client.status().map_err(|error| PeersError::Library(error.to_string()))?;
        if status.workers.len() >= count {
            return Ok(());
        }
        if Instant::now() >= until {
            let sentence = format!("{} of {count} workers registered in time", status.workers.len());
            return Err(PeersError::Library(sentence));
        }
        thread::sleep(Duration::from_millis(2));
    }
}

fn closed_loop(
    client: &Client,
    load: &Load,
    begin: Instant,
    stop: &AtomicBool,
) -> Result<Measurement, PeersError> {
    let library = |error: RawError| PeersError::Library(error.to_string());
    let measured_to = load.warm_up + load.duration;
    let payload = vec![b'x'; load.size];
    let queue = client.completion_queue(load.window);
    let mut measurement = Measurement::new(load.duration).map_err(library)?;
    let mut now = begin.elapsed();
    let mut sent_at = vec![now; load.window];
    for slot in 0..load.window as u64 {
        submit(client, &queue, slot, &payload)?;
    }
    let mut batch: Vec<Completion> = Vec::new();
    while queue.recv_batch(&mut batch) {
        now = begin.elapsed();
        let go_on = now < measured_to && !stop.load(Ordering::Relaxed);
        if !go_on {
            queue.close();
        }
        let measured = (load.warm_up..measured_to).contains(&now);
        for completion in batch.drain(..) {
            let result = completion.outcome.map_err(|failure| PeersError::Library(failure.to_string()))?;
            if result.len() != load.size {
                return Err(library(RawError::WrongSize { got: result.len(), sent: load.size }));
            }
            // The tag is the slot that was submitted with it.
            let Some(sent) = sent_at.get_mut(completion.tag as usize) else {
                return Err(library(RawError::Unasked(completion.tag)));
            };
            if measured {
                measurement.tasks += 1;
                measurement.record((now - *sent).as_nanos() as u64, 1);
            }
            if go_on {
                *sent = now;
                submit(client, &queue, completion.tag, &payload)?;
            }
        }
    }
    Ok(measurement)
}

fn submit(client: &Client, queue: &CompletionQueue, slot: u64, payload: &[u8]) -> Result<(), PeersError> {
    queue
        .submit(slot, client.task(ACTION).payload_slice(payload))
        .map_err(|error| PeersError::Library(error.to_string()))
}

#[cfg(test)]
mod tests {
    use reparto_balancer::{Balancer, Settings};

    use super::*;

    #[test]
    fn tasks_through_the_libraries_are_counted_and_all_answered() {
        let any_port = ([127, 0, 0, 1], 0).into();
        let settings = Settings { clients: any_port, workers: any_port, ..Settings::default() };
        let balancer = Balancer::bind(settings).unwrap();
        let (clients, workers, handle) =
            (balancer.clients_addr(), balancer.workers_addr(), balancer.handle());
        let balancing = thread::spawn(move || balancer.run());
        let working = start_workers(workers, 2).unwrap();
        // Long enough that something is answered in it on any machine: the loop begins at once.
        let load = Load { connections: 2, window: 16, duration: Duration::from_secs(1), ..Load::default() };
        let measurement = drive(clients, &load, &AtomicBool::new(false)).unwrap();
        assert!(measurement.tasks > 0);
        assert_eq!(measurement.tasks, measurement.latency_count());
        drop(working);
        handle.shutdown();
        balancing.join().unwrap().unwrap();
    }
}

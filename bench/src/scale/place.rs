//! A balancer as a process of its own, and what memory it has resident.

use std::any::Any;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::ScaleError;

/// A balancer to be measured. A process ends when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    /// Where clients connect.
    pub(super) clients: SocketAddr,
    /// Where workers connect.
    pub(super) workers: SocketAddr,
    /// The process that serves.
    pub(super) process: u32,
    /// What keeps it running, held to be dropped.
    _server: Box<dyn Any>,
}

#[derive(Debug)]
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Nothing of value is in it, and one that has ended already cannot be killed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Place {
    /// Starts a balancer on free ports of the loopback interface, with its own settings except for what the
    /// measurements need: room for every connection, and patience with tasks that nobody takes.
    pub(super) fn start(program: &Path) -> Result<Place, ScaleError> {
        let failed = |reason: String| ScaleError::Start { program: program.display().to_string(), reason };
        let mut command = Command::new(program);
        command.args(["balancer", "--no-data", "--clients", "127.0.0.1:0", "--workers", "127.0.0.1:0"]);
        command.args(["--max-connections", "30000", "--wait", "1h"]);
        // What the user set up for a balancer of their own is not what is measured.
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("REPARTO_")) {
                command.env_remove(name);
            }
        }
        command.env("REPARTO_LOG", "error");
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        // Ctrl-C in a terminal goes to the whole group; the balancer is ended by its owner alone.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut process = Process(command.spawn().map_err(|error| failed(error.to_string()))?);
        let output = process.0.stdout.take().ok_or_else(|| failed("it has no standard output".into()))?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).map_err(|error| failed(error.to_string()))?;
        let (clients, workers) = addresses(&line)
            .ok_or_else(|| failed(format!("it said {:?} instead of where it listens", line.trim())))?;
        Ok(Place { clients, workers, process: process.0.id(), _server: Box::new(process) })
    }

    #[cfg(test)]
    pub(super) fn in_process(server: super::tests::InProcess) -> Place {
        let (clients, workers) = (server.clients, server.workers);
        Place { clients, workers, process: std::process::id(), _server: Box::new(server) }
    }

    /// Bytes that the balancer's process has resident; `None` where the system does not tell.
    pub(super) fn resident_bytes(&self) -> Option<u64> {
        resident_bytes(self.process)
    }
}

/// The addresses of `ready clients=ADDR workers=ADDR`.
fn addresses(line: &str) -> Option<(SocketAddr, SocketAddr)> {
    let (clients, workers) = line.trim().strip_prefix("ready clients=")?.split_once(" workers=")?;
    Some((clients.parse().ok()?, workers.parse().ok()?))
}

/// Bytes that a process has resident, as Linux tells it.
fn resident_bytes(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_line_gives_both_addresses() {
        let line = "ready clients=127.0.0.1:4000 workers=[::1]:4001\n";
        let (clients, workers) = addresses(line).unwrap();
        assert_eq!((clients.port(), workers.port()), (4000, 4001));
        assert_eq!(addresses("ready id=w1"), None);
        assert_eq!(addresses(""), None);
    }

    #[test]
    fn a_program_that_is_no_balancer_is_named() {
        let error = Place::start(Path::new("/nowhere/reparto")).unwrap_err().to_string();
        assert!(
            error.starts_with("the balancer cannot be started as `/nowhere/reparto balancer`"),
            "{error}"
        );
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_has_memory() {
        assert!(resident_bytes(std::process::id()).is_some_and(|bytes| bytes > 100_000));
    }
}

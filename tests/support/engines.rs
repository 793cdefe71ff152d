//! Real engines of a test's own: PostgreSQL, RabbitMQ and an S3 server that it may stop, kill and bring back.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::{runs, wait_for, wait_until};

/// Engines that scripts/services has brought up in a folder of this test's own; stopped, and removed, at the end.
pub struct Engines {
    folder: PathBuf,
    names: Vec<&'static str>,
    variables: HashMap<String, String>,
}

impl Engines {
    /// Starts some of `postgres`, `rabbitmq` and `s3`.
    pub fn start(names: &[&'static str]) -> Engines {
        let names = names.to_vec();
        let mut engines = Engines { folder: super::folder(), names, variables: HashMap::new() };
        for name in engines.names.clone() {
            engines.up(name);
        }
        engines
    }

    /// Starts one, again perhaps, where it was. One that was killed may leave something behind for a moment that keeps
    /// it from starting, so it is tried again.
    pub fn up(&mut self, name: &str) {
        let exports = wait_for(&format!("{name} is up"), || self.services("up", name).ok());
        for line in exports.lines() {
            let exported = line.strip_prefix("export ").unwrap_or_else(|| panic!("'{line}' exports nothing"));
            let (variable, value) = exported.split_once('=').unwrap();
            self.variables.insert(variable.to_owned(), value.trim_matches('\'').to_owned());
        }
    }

    /// Stops one in good order.
    pub fn down(&self, name: &str) {
        self.services("down", name).unwrap();
    }

    /// Kills one, with SIGKILL, and waits until it is gone.
    pub fn kill(&self, name: &str) {
        let pid = self.pid(name);
        kill_process(pid, Signal::KILL).unwrap();
        wait_until("it is gone", || !runs(pid));
    }

    fn pid(&self, name: &str) -> Pid {
        let said = self.services("status", name).unwrap();
        let pid = said.trim().rsplit_once("process ").and_then(|(_, pid)| pid.parse().ok());
        pid.and_then(Pid::from_raw).unwrap_or_else(|| panic!("{name} is not a process of its own: {said}"))
    }

    pub fn postgres_url(&self) -> &str {
        &self.variables["REPARTO_POSTGRES_URL"]
    }

    pub fn rabbitmq_url(&self) -> &str {
        &self.variables["REPARTO_RABBITMQ_URL"]
    }

    pub fn s3_url(&self) -> &str {
        &self.variables["REPARTO_S3_URL"]
    }

    /// Gives a command the key to the S3 server.
    pub fn with_s3_key(&self, command: &mut Command) {
        for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] {
            command.env(name, &self.variables[name]);
        }
    }

    /// What scripts/services says to standard output, or, when it fails, to standard error.
    fn services(&self, what: &str, name: &str) -> Result<String, String> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/services");
        let mut command = Command::new(script);
        command.args([what, name]).env("REPARTO_SERVICES_DIR", &self.folder).stdin(Stdio::null());
        let output = command.output().expect("scripts/services can be run");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    }
}

impl Drop for Engines {
    fn drop(&mut self) {
        for name in &self.names {
            if let Err(said) = self.services("purge", name) {
                eprintln!("{name} may still run: {said}");
            }
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

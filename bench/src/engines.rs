//! Engines of a run's own: PostgreSQL, RabbitMQ and an S3 server, brought up by `scripts/services` in a folder of the
//! run, killed with SIGKILL, and brought up again.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// The engines that several balancers share.
pub const ALL: [&str; 3] = ["postgres", "rabbitmq", "s3"];

/// What `scripts/services` exports, and what a balancer reads. Variables, since URLs have passwords, which everybody
/// could read in the list of processes.
const URLS: [(&str, &str); 3] = [
    ("REPARTO_POSTGRES_URL", "REPARTO_BALANCER_STORE"),
    ("REPARTO_S3_URL", "REPARTO_BALANCER_BLOBS"),
    ("REPARTO_RABBITMQ_URL", "REPARTO_BALANCER_BUS"),
];

/// What a balancer is told of engines that `lookup` knows by the names under which the script exports them.
///
/// # Errors
/// The first name that it does not know.
pub fn balancer_variables(lookup: impl Fn(&str) -> Option<String>) -> Result<Vec<(String, String)>, String> {
    let variable = |(exported, wanted): &(&str, &str)| {
        let value = lookup(exported).ok_or_else(|| (*exported).to_owned())?;
        Ok(((*wanted).to_owned(), value))
    };
    URLS.iter().map(variable).collect()
}

/// The script, as it is found from the top of the source tree.
const SCRIPT: &str = "scripts/services";
/// A start that fails is tried again so often: after SIGKILL something of the former process may be there yet.
const MOST_STARTS: u32 = 60;
/// Time between two tries.
const START_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// The engines of a run.
#[derive(Debug)]
pub struct Engines {
    script: PathBuf,
    folder: PathBuf,
    names: Vec<&'static str>,
    /// What the script exports.
    variables: Vec<(String, String)>,
    /// Those that are on their way back.
    restarts: Vec<(usize, JoinHandle<Result<(), String>>)>,
}

/// Where the script is: from the current folder upwards, or from this program's.
pub fn services_script() -> Option<PathBuf> {
    let folders = [std::env::current_dir().ok(), std::env::current_exe().ok()];
    let mut places = folders.iter().flatten().flat_map(|folder| folder.ancestors());
    places.find_map(|folder| Some(folder.join(SCRIPT)).filter(|script| script.is_file()))
}

impl Engines {
    /// Brings them up.
    ///
    /// # Errors
    /// A sentence: the script is not found, or what it says when it fails.
    pub fn start(folder: &Path, names: &[&'static str]) -> Result<Engines, String> {
        let script = services_script().ok_or_else(|| {
            format!("{SCRIPT} is not found from here; run this inside Reparto's source tree")
        })?;
        let mut engines = Engines {
            script,
            folder: folder.to_owned(),
            names: names.to_vec(),
            variables: Vec::new(),
            restarts: Vec::new(),
        };
        let exports = engines.call("up", names)?;
        engines.variables = read_exports(&exports);
        Ok(engines)
    }

    /// What a balancer is told of them.
    ///
    /// # Errors
    /// A sentence: the script exports less than that.
    pub fn balancer_variables(&self) -> Result<Vec<(String, String)>, String> {
        let lookup = |name: &str| {
            let found = self.variables.iter().find(|(other, _)| other == name);
            found.map(|(_, value)| value.clone())
        };
        let variables = balancer_variables(lookup);
        let mut variables = variables.map_err(|name| format!("{SCRIPT} exports no {name}"))?;
        let others = self.variables.iter().filter(|(name, _)| name.starts_with("AWS_"));
        variables.extend(others.cloned());
        Ok(variables)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.names.len()
    }

    /// The name of one of them, by its number from 0.
    pub fn name(&self, which: usize) -> &'static str {
        self.names.get(which).copied().unwrap_or("")
    }

    /// Kills one with SIGKILL and has it brought up again. Says whether it was there to be killed.
    pub fn kill(&mut self, which: usize, away: Duration) -> bool {
        let name = self.name(which);
        self.forget_those_that_are_back();
        if self.restarts.iter().any(|(other, _)| *other == which) {
            return false;
        }
        let Some(pid) = self.process(name) else { return false };
        if kill_process(pid, Signal::KILL).is_err() {
            return false;
        }
        let (script, folder) = (self.script.clone(), self.folder.clone());
        let restart = std::thread::spawn(move || {
            std::thread::sleep(away);
            let mut failed = String::new();
            for _ in 0..MOST_STARTS {
                match call(&script, &folder, "up", &[name]) {
                    Ok(_) => return Ok(()),
                    Err(error) => failed = error,
                }
                std::thread::sleep(START_AGAIN_AFTER);
            }
            Err(format!("{name} does not come back: {failed}"))
        });
        self.restarts.push((which, restart));
        true
    }

    fn forget_those_that_are_back(&mut self) {
        self.restarts.retain(|(_, restart)| !restart.is_finished());
    }

    /// Waits until all are back.
    ///
    /// # Errors
    /// A sentence: one of them does not come back.
    pub fn settle(&mut self) -> Result<(), String> {
        for (_, restart) in self.restarts.drain(..) {
            // It does not panic; if it did, the next use of the engine would tell.
            restart.join().unwrap_or(Ok(()))?;
        }
        self.call("up", &self.names).map(|_| ())
    }

    fn process(&self, name: &str) -> Option<Pid> {
        let status = self.call("status", &[name]).ok()?;
        let (_, number) = status.trim().rsplit_once("process ")?;
        Pid::from_raw(number.parse().ok()?)
    }

    fn call(&self, command: &str, names: &[&str]) -> Result<String, String> {
        call(&self.script, &self.folder, command, names)
    }
}

impl Drop for Engines {
    fn drop(&mut self) {
        for (_, restart) in self.restarts.drain(..) {
            let _ = restart.join();
        }
        if let Err(error) = self.call("purge", &self.names) {
            log::warn!("the engines could not be stopped: {error}");
        }
    }
}

fn call(script: &Path, folder: &Path, command: &str, names: &[&str]) -> Result<String, String> {
    let output = Command::new(script)
        .arg(command)
        .args(names)
        .env("REPARTO_SERVICES_DIR", folder)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{} cannot be run: {error}", script.display()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let words: Vec<&str> = said.trim().lines().rev().take(5).collect();
    let words: Vec<&str> = words.into_iter().rev().collect();
    Err(format!("{SCRIPT} {command} {}: {}", names.join(" "), words.join(" / ")))
}

/// Reads lines like `export NAME='VALUE'`.
fn read_exports(text: &str) -> Vec<(String, String)> {
    let read = |line: &str| {
        let (name, value) = line.trim().strip_prefix("export ")?.split_once('=')?;
        Some((name.to_owned(), value.trim_matches('\'').to_owned()))
    };
    text.lines().filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exports_are_read_with_and_without_quotes() {
        let text = "export A=postgres://u:p@h:1/d\nnoise\nexport B='s3://b?endpoint=http://h:2&region=r'\n";
        let expected = [("A", "postgres://u:p@h:1/d"), ("B", "s3://b?endpoint=http://h:2&region=r")];
        let read = read_exports(text);
        assert_eq!(read.iter().map(|(name, value)| (&**name, &**value)).collect::<Vec<_>>(), expected);
    }
}

//! Engines of one's own: PostgreSQL, RabbitMQ and an S3 server, brought up by `scripts/services` in a folder, killed with
//! SIGKILL, and brought up again at the same addresses. For crash runs, demos and tests.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group, test_kill_process};

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
/// How long the script may take. It has limits of its own, which say more; only what must be built first takes minutes.
const SCRIPT_WITHIN: Duration = Duration::from_secs(1800);
/// Time for what was killed to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(60);
/// A start that fails is tried again for so long: after SIGKILL something of the former process may be there yet.
const START_WITHIN: Duration = Duration::from_secs(180);
/// Time between two tries, and two looks.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(500);
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(10);

/// Engines in a folder. They are stopped, and their data removed, when this is dropped.
#[derive(Debug)]
pub struct Engines {
    services: Services,
    names: Vec<&'static str>,
    /// What the script exports.
    variables: Vec<(String, String)>,
    /// Those that are on their way back.
    restarts: Vec<(&'static str, JoinHandle<Result<(), String>>)>,
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
            services: Services { script, folder: folder.to_owned() },
            names: names.to_vec(),
            variables: Vec::new(),
            restarts: Vec::new(),
        };
        let exports = engines.services.call("up", names)?;
        engines.variables = read_exports(&exports);
        Ok(engines)
    }

    /// What a balancer is told of them.
    ///
    /// # Errors
    /// A sentence: the script exports less than that.
    pub fn balancer_variables(&self) -> Result<Vec<(String, String)>, String> {
        let variables = balancer_variables(|name| self.variable(name).map(str::to_owned));
        let mut variables = variables.map_err(|name| format!("{SCRIPT} exports no {name}"))?;
        let others = self.variables.iter().filter(|(name, _)| name.starts_with("AWS_"));
        variables.extend(others.cloned());
        Ok(variables)
    }

    /// What the script exports under a name.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.variables.iter().find(|(other, _)| other == name).map(|(_, value)| &**value)
    }

    /// Their names.
    pub fn names(&self) -> &[&'static str] {
        &self.names
    }

    /// Kills one with SIGKILL, and waits until it is gone.
    ///
    /// # Errors
    /// A sentence: it does not run, or does not end.
    pub fn kill(&self, name: &str) -> Result<(), String> {
        let pid = self.services.process(name).ok_or_else(|| format!("{name} does not run"))?;
        kill_process(pid, Signal::KILL).map_err(|error| format!("{name} cannot be killed: {error}"))?;
        await_end(name, pid)
    }

    /// Brings one up again, where it was.
    ///
    /// # Errors
    /// A sentence: what the script says, time and again.
    pub fn up(&self, name: &str) -> Result<(), String> {
        self.services.up_again(name)
    }

    /// Stops one in good order.
    ///
    /// # Errors
    /// A sentence: what the script says.
    pub fn down(&self, name: &str) -> Result<(), String> {
        self.services.call("down", &[name]).map(|_| ())
    }

    /// Kills one with SIGKILL and has it brought up again after some time, while others go on. Says whether it was there
    /// to be killed.
    pub fn strike(&mut self, name: &'static str, away: Duration) -> bool {
        self.restarts.retain(|(_, restart)| !restart.is_finished());
        if self.restarts.iter().any(|(other, _)| *other == name) {
            return false;
        }
        let Some(pid) = self.services.process(name) else { return false };
        if kill_process(pid, Signal::KILL).is_err() {
            return false;
        }
        let services = self.services.clone();
        let restart = std::thread::spawn(move || {
            std::thread::sleep(away);
            await_end(name, pid)?;
            services.up_again(name)
        });
        self.restarts.push((name, restart));
        true
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
        self.services.call("up", &self.names).map(|_| ())
    }
}

impl Drop for Engines {
    fn drop(&mut self) {
        for (_, restart) in self.restarts.drain(..) {
            let _ = restart.join();
        }
        if let Err(error) = self.services.call("purge", &self.names) {
            log::warn!("the engines could not be stopped: {error}");
        }
    }
}

/// The script, for engines in a folder.
#[derive(Debug, Clone)]
struct Services {
    script: PathBuf,
    folder: PathBuf,
}

impl Services {
    fn up_again(&self, name: &str) -> Result<(), String> {
        let give_up_at = Instant::now() + START_WITHIN;
        loop {
            match self.call("up", &[name]) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() >= give_up_at => {
                    return Err(format!("{name} does not come back: {error}"));
                }
                Err(error) => log::info!("{error}"),
            }
            std::thread::sleep(TRY_AGAIN_AFTER);
        }
    }

    /// The process of an engine, if it runs.
    fn process(&self, name: &str) -> Option<Pid> {
        let status = self.call("status", &[name]).ok()?;
        let (_, number) = status.trim().rsplit_once("process ")?;
        Pid::from_raw(number.parse().ok()?)
    }

    /// What the script says; when it fails, the end of its complaint.
    fn call(&self, command: &str, names: &[&str]) -> Result<String, String> {
        let what = format!("{SCRIPT} {command} {}", names.join(" "));
        let mut child = Command::new(&self.script);
        child.arg(command).args(names).env("REPARTO_SERVICES_DIR", &self.folder);
        child.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A group of its own, so that all of it can be ended.
        std::os::unix::process::CommandExt::process_group(&mut child, 0);
        let child = child.spawn().map_err(|error| format!("{what} cannot be run: {error}"))?;
        await_script(child, &what)
    }
}

/// Waits until a script has ended, and gives what it said to standard output.
fn await_script(mut child: Child, what: &str) -> Result<String, String> {
    let output = read_in_background(child.stdout.take());
    let complaint = read_in_background(child.stderr.take());
    let give_up_at = Instant::now() + SCRIPT_WITHIN;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < give_up_at => std::thread::sleep(LOOK_AGAIN_AFTER),
            Ok(None) => {
                let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
                let _ = child.wait();
                let said = last_words(&complaint.join().unwrap_or_default());
                return Err(format!("{what} has not ended after {} s: {said}", SCRIPT_WITHIN.as_secs()));
            }
            Err(error) => return Err(format!("{what} cannot be waited for: {error}")),
        }
    };
    if status.success() {
        return Ok(output.join().unwrap_or_default());
    }
    Err(format!("{what}: {}", last_words(&complaint.join().unwrap_or_default())))
}

fn read_in_background(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What was read before an error is better than nothing.
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// The last lines of a complaint, on one line.
fn last_words(said: &str) -> String {
    let lines: Vec<&str> = said.trim().lines().collect();
    lines[lines.len().saturating_sub(8)..].join(" / ")
}

fn await_end(name: &str, pid: Pid) -> Result<(), String> {
    let give_up_at = Instant::now() + GONE_WITHIN;
    while runs(pid) {
        if Instant::now() >= give_up_at {
            return Err(format!("{name} (process {pid}) was killed, and does not end"));
        }
        std::thread::sleep(LOOK_AGAIN_AFTER);
    }
    Ok(())
}

/// Whether a process runs; one that has ended and that nobody has asked about does not.
pub fn runs(pid: Pid) -> bool {
    if test_kill_process(pid).is_err() {
        return false;
    }
    let state = Command::new("ps").args(["-o", "stat=", "-p", &pid.as_raw_nonzero().to_string()]).output();
    // Without the command ps nothing is known but that the number is in use.
    let Ok(state) = state.map(|output| output.stdout) else { return true };
    !state.is_empty() && !state.trim_ascii_start().starts_with(b"Z")
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

    #[test]
    fn a_complaint_is_told_by_its_last_lines() {
        let said = (1..=20).map(|line| format!("line {line}\n")).collect::<String>();
        assert_eq!(last_words(&said), (13..=20).map(|n| format!("line {n}")).collect::<Vec<_>>().join(" / "));
        assert_eq!(last_words(""), "");
    }
}

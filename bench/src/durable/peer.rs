//! The servers that keep tasks: how each is found, started with its data in a temporary folder, and driven.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use crate::peers::Lacking;
use crate::peers::error::PeersError;
use crate::peers::process::{Folder, Process, find, free_port, output_of};
use crate::peers::server::{START_ATTEMPTS, balancer, ready_addresses, version_in};
use crate::raw::{AmqpConfirmed, Beanstalk, ClientProtocol, GearmanBackground, JetStream, RepartoBackground};

/// Where Debian has RabbitMQ's own script; the one in PATH wants to be its user, with its folders.
const RABBITMQ_SCRIPTS: &str = "/usr/lib/rabbitmq/bin";

/// A server in one of its settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Peer {
    /// Reparto, which accepts what the disk has.
    RepartoFsync,
    /// Reparto, which accepts what the operating system has, and syncs every 50 ms.
    RepartoInterval,
    /// nats-server with a JetStream stream in files, which it syncs every two minutes.
    JetStream,
    /// RabbitMQ with a quorum queue, persistent messages and publisher confirms.
    RabbitMq,
    /// beanstalkd with its log, synced before it answers.
    Beanstalkd,
    /// gearmand with its queue in SQLite.
    Gearmand,
}

impl Peer {
    /// All of them.
    pub const ALL: [Peer; 6] = [
        Peer::RepartoFsync,
        Peer::RepartoInterval,
        Peer::JetStream,
        Peer::RabbitMq,
        Peer::Beanstalkd,
        Peer::Gearmand,
    ];

    /// The name with the setting, as tables show it.
    pub fn name(self) -> &'static str {
        match self {
            Peer::RepartoFsync => "reparto, fsync",
            Peer::RepartoInterval => "reparto, interval:50ms",
            Peer::JetStream => "nats-server, JetStream",
            Peer::RabbitMq => "rabbitmq, quorum queue",
            Peer::Beanstalkd => "beanstalkd, fsync",
            Peer::Gearmand => "gearmand, SQLite",
        }
    }

    /// The name in JSON.
    pub fn key(self) -> &'static str {
        match self {
            Peer::RepartoFsync => "reparto_fsync",
            Peer::RepartoInterval => "reparto_interval",
            Peer::JetStream => "jetstream",
            Peer::RabbitMq => "rabbitmq",
            Peer::Beanstalkd => "beanstalkd",
            Peer::Gearmand => "gearmand",
        }
    }

    /// The program's file, and the package that has it.
    fn program(self) -> Lacking {
        let (program, packages) = match self {
            Peer::RepartoFsync | Peer::RepartoInterval => ("reparto", "reparto"),
            Peer::JetStream => ("nats-server", "nats-server"),
            Peer::RabbitMq => ("rabbitmq-server", "rabbitmq-server"),
            Peer::Beanstalkd => ("beanstalkd", "beanstalkd"),
            Peer::Gearmand => ("gearmand", "gearman-job-server"),
        };
        Lacking { program, packages }
    }

    pub(super) fn protocol(self) -> &'static dyn ClientProtocol {
        match self {
            Peer::RepartoFsync | Peer::RepartoInterval => &RepartoBackground,
            Peer::JetStream => &JetStream,
            Peer::RabbitMq => &AmqpConfirmed,
            Peer::Beanstalkd => &Beanstalk,
            Peer::Gearmand => &GearmanBackground,
        }
    }
}

/// Reads a peer's name in JSON.
impl FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Peer, String> {
        let keys = Peer::ALL.map(Peer::key);
        let found = Peer::ALL.into_iter().find(|peer| peer.key() == text);
        found.ok_or_else(|| format!("'{text}' is not a server; they are {}", keys.join(", ")))
    }
}

/// Where a balancer keeps tasks, and when it takes one for durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Store<'a> {
    Off,
    In(&'a Path, &'static str),
    /// Shared over a bus, with a folder for what is large.
    Shared {
        postgres: &'a str,
        rabbitmq: &'a str,
        blobs: &'a Path,
    },
}

/// A peer whose program was found.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) peer: Peer,
    program: PathBuf,
    /// The program and its version, as `nats-server 2.9.10`.
    pub(super) version: String,
}

/// Finds the programs of these peers. Reparto's own is given.
pub(super) fn find_all(peers: &[Peer], reparto: &Path) -> (Vec<Found>, Vec<Lacking>) {
    let (mut found, mut lacking) = (Vec::new(), Vec::new());
    for peer in Peer::ALL.into_iter().filter(|it| peers.contains(it)) {
        let needed = peer.program();
        let program = match peer {
            Peer::RepartoFsync | Peer::RepartoInterval => Some(reparto.to_owned()),
            Peer::RabbitMq => {
                let script = Path::new(RABBITMQ_SCRIPTS).join(needed.program);
                // Erlang's name server is a program of its own, which is there with Erlang.
                Some(script)
                    .filter(|it| it.is_file())
                    .or_else(|| find(needed.program))
                    .filter(|_| epmd().is_some())
            }
            _ => find(needed.program),
        };
        match program {
            Some(program) => {
                let version = format!("{} {}", needed.program, version(peer, &program));
                found.push(Found { peer, program, version });
            }
            None => lacking.push(needed),
        }
    }
    (found, lacking)
}

fn epmd() -> Option<PathBuf> {
    find("epmd")
}

fn version(peer: Peer, program: &Path) -> String {
    let told = match peer {
        Peer::Beanstalkd => output_of(program, &["-v"]),
        // Asking it for its version starts a whole Erlang, so its folder is looked at.
        Peer::RabbitMq => rabbitmq_version(program).unwrap_or_default(),
        _ => output_of(program, &["--version"]),
    };
    version_in(&told).to_owned()
}

/// From the name of the folder that has RabbitMQ's plugins, next to that of its scripts.
fn rabbitmq_version(script: &Path) -> Option<String> {
    let lib = script.parent()?.parent()?.join("lib");
    let names = std::fs::read_dir(lib).ok()?.flatten();
    let versions =
        names.filter_map(|it| Some(it.file_name().to_str()?.strip_prefix("rabbitmq_server-")?.to_owned()));
    versions.max()
}

/// A server that serves. Dropping it kills it and removes its folders.
pub(super) struct Running {
    pub(super) clients: SocketAddr,
    // The server before what it needs.
    _processes: Vec<Process>,
    _data: Option<Folder>,
}

impl Found {
    /// Starts it, with its data in a folder of its own under `parent`.
    pub(super) fn start(&self, parent: &Path) -> Result<Running, PeersError> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            match self.try_start(parent) {
                // Somebody else may have taken a port in between.
                Err(PeersError::NotReady { .. }) if attempts < START_ATTEMPTS => {}
                outcome => return outcome,
            }
        }
    }

    fn try_start(&self, parent: &Path) -> Result<Running, PeersError> {
        let folder = Folder::new_in(parent)?;
        let port = free_port()?;
        let (host, number) = (port.ip().to_string(), port.port().to_string());
        let mut command = Command::new(&self.program);
        match self.peer {
            Peer::RepartoFsync => return self.start_reparto(folder, "fsync"),
            Peer::RepartoInterval => return self.start_reparto(folder, "interval:50ms"),
            Peer::RabbitMq => return self.start_rabbitmq(folder, port),
            Peer::JetStream => {
                command.args(["-js", "-a", &host, "-p", &number, "-sd"]).arg(folder.path().join("data"));
            }
            Peer::Beanstalkd => {
                // It answers after it has synced.
                command.args(["-l", &host, "-p", &number, "-f", "0", "-b"]).arg(folder.path());
            }
            Peer::Gearmand => {
                command.args([
                    "-L",
                    &host,
                    "-p",
                    &number,
                    "-l",
                    "stderr",
                    "-q",
                    "libsqlite3",
                    "--libsqlite3-db",
                ]);
                command
                    .arg(folder.path().join("queue.sqlite"))
                    .arg("--pid-file")
                    .arg(folder.path().join("pid"));
            }
        }
        let mut process = Process::start(self.peer.name(), command, folder)?;
        process.wait_for_port(port)?;
        Ok(Running { clients: port, _processes: vec![process], _data: None })
    }

    fn start_reparto(&self, data: Folder, durability: &'static str) -> Result<Running, PeersError> {
        let parent = data.path().parent().unwrap_or(Path::new("."));
        let balancer = Balancer::start(&self.program, parent, Store::In(data.path(), durability))?;
        let Balancer { clients, process, .. } = balancer;
        Ok(Running { clients, _processes: vec![process], _data: Some(data) })
    }

    /// RabbitMQ, with a name server for Erlang of its own: the usual one would be found by others and outlive it.
    fn start_rabbitmq(&self, folder: Folder, port: SocketAddr) -> Result<Running, PeersError> {
        let name = self.peer.name();
        let parent = folder.path().parent().unwrap_or(Path::new(".")).to_owned();
        let epmd =
            epmd().ok_or_else(|| PeersError::Options("epmd is not here, which RabbitMQ needs".into()))?;
        let names = free_port()?;
        let mut command = Command::new(epmd);
        command.args(["-address", "127.0.0.1", "-port", &names.port().to_string()]);
        let mut names_process = Process::start("epmd", command, Folder::new_in(&parent)?)?;
        names_process.wait_for_port(names)?;

        let home = folder.path();
        let configuration =
            format!("listeners.tcp.default = {port}\nlog.console = false\nlog.file.level = warning\n");
        let configuration = folder.write("rabbitmq.conf", &configuration)?;
        let plugins = folder.write("enabled_plugins", "[].\n")?;
        let mut command = Command::new(&self.program);
        command
            // So that this process becomes Erlang's, and ends when it is killed.
            .env("RUNNING_UNDER_SYSTEMD", "true")
            .env("HOME", home)
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("ERL_EPMD_PORT", names.port().to_string())
            .env("RABBITMQ_NODENAME", format!("bench-{}@localhost", port.port()))
            .env("RABBITMQ_DIST_PORT", free_port()?.port().to_string())
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1}")
            .env("RABBITMQ_MNESIA_BASE", home.join("data"))
            .env("RABBITMQ_LOG_BASE", home.join("logs"))
            .env("RABBITMQ_PID_FILE", home.join("pid"))
            .env("RABBITMQ_CONFIG_FILE", configuration)
            .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", plugins);
        let mut process = Process::start(name, command, folder)?;
        process.wait_for_port(port)?;
        Ok(Running { clients: port, _processes: vec![process, names_process], _data: None })
    }
}

/// A balancer as a process of its own. Dropping it kills it with SIGKILL.
pub(super) struct Balancer {
    pub(super) clients: SocketAddr,
    pub(super) workers: SocketAddr,
    process: Process,
}

impl Balancer {
    /// Starts it, and waits until it says that it is ready.
    pub(super) fn start(program: &Path, parent: &Path, store: Store<'_>) -> Result<Balancer, PeersError> {
        let mut command = balancer(program);
        match store {
            Store::Off => {
                command.arg("--no-data");
            }
            Store::In(data, durability) => {
                command.arg("--data").arg(data.join("data")).args(["--durability", durability]);
            }
            Store::Shared { postgres, rabbitmq, blobs } => {
                // Not as arguments, which everybody could read: they have passwords.
                command.env("REPARTO_BALANCER_STORE", postgres).env("REPARTO_BALANCER_BUS", rabbitmq);
                command.arg("--blobs").arg(format!("file:{}", blobs.join("blobs").display()));
            }
        }
        let mut process = Process::start("reparto", command, Folder::new_in(parent)?)?;
        let (clients, workers) = process.wait_for_words(ready_addresses)?;
        Ok(Balancer { clients, workers, process })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_named_as_the_json_names_it() {
        for peer in Peer::ALL {
            assert_eq!(peer.key().parse(), Ok(peer));
        }
        assert!("kafka".parse::<Peer>().is_err_and(|sentence| sentence.contains("they are reparto_fsync, ")));
    }

    #[test]
    fn a_version_of_rabbitmq_is_that_of_its_folder() {
        let folder = Folder::new().unwrap();
        std::fs::create_dir_all(folder.path().join("lib/rabbitmq_server-3.10.8")).unwrap();
        std::fs::create_dir_all(folder.path().join("bin")).unwrap();
        let script = folder.path().join("bin/rabbitmq-server");
        assert_eq!(version(Peer::RabbitMq, &script), "3.10.8");
    }
}

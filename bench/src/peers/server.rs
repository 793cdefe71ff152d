//! The servers of a side-by-side run: how each is found, started and driven.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use super::PeersError;
use super::process::{Folder, Process, find, free_port, output_of};
use crate::raw::{EchoServers, Gearman, Nats, Protocol, RawError, Relay, Reparto, Workers};

/// Times that another port is tried when a server could not have the one picked for it.
pub(crate) const START_ATTEMPTS: usize = 3;

/// A server, as the tables name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Server {
    /// Reparto's balancer.
    Reparto,
    /// The same, with the clients and workers that gearmand has.
    RepartoGearman,
    /// nats-server, with request and reply and a queue group.
    Nats,
    /// Gearman's server, with foreground jobs.
    Gearmand,
    /// A server that passes bytes on and knows nothing of tasks: HAProxy or nginx, whichever is faster.
    Relay,
}

impl Server {
    /// All of them.
    pub const ALL: [Server; 5] =
        [Server::Reparto, Server::RepartoGearman, Server::Nats, Server::Gearmand, Server::Relay];

    /// The name, as JSON and the command line have it.
    pub fn name(self) -> &'static str {
        match self {
            Server::Reparto => "reparto",
            Server::RepartoGearman => "reparto_gearman",
            Server::Nats => "nats",
            Server::Gearmand => "gearmand",
            Server::Relay => "relay",
        }
    }
}

impl Server {
    /// All names, as a sentence has them.
    fn names() -> String {
        let names = Server::ALL.map(Server::name);
        let (last, others) = names.split_last().map_or(("", &names[..]), |(last, others)| (*last, others));
        format!("{} and {last}", others.join(", "))
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Server {
    type Err = String;

    fn from_str(text: &str) -> Result<Server, String> {
        let found = Server::ALL.into_iter().find(|server| server.name() == text);
        found.ok_or_else(|| format!("'{text}' is not a server; they are {}", Server::names()))
    }
}

/// A server in one of its settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Contender {
    Reparto,
    RepartoGearman,
    Nats,
    GearmandOneThread,
    GearmandDefault,
    HaProxy,
    Nginx,
}

impl Contender {
    pub(super) const ALL: [Contender; 7] = [
        Contender::Reparto,
        Contender::RepartoGearman,
        Contender::Nats,
        Contender::GearmandOneThread,
        Contender::GearmandDefault,
        Contender::HaProxy,
        Contender::Nginx,
    ];

    pub(super) fn server(self) -> Server {
        match self {
            Contender::Reparto => Server::Reparto,
            Contender::RepartoGearman => Server::RepartoGearman,
            Contender::Nats => Server::Nats,
            Contender::GearmandOneThread | Contender::GearmandDefault => Server::Gearmand,
            Contender::HaProxy | Contender::Nginx => Server::Relay,
        }
    }

    /// The name with the setting, as tables show it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Contender::Reparto => "reparto",
            Contender::RepartoGearman => "reparto --gearman",
            Contender::Nats => "nats",
            Contender::GearmandOneThread => "gearmand -t 1",
            Contender::GearmandDefault => "gearmand",
            Contender::HaProxy => "relay (HAProxy)",
            Contender::Nginx => "relay (nginx)",
        }
    }

    /// The program's file, and the package that has it.
    fn program(self) -> (&'static str, &'static str) {
        match self {
            Contender::Reparto | Contender::RepartoGearman => ("reparto", "reparto"),
            Contender::Nats => ("nats-server", "nats-server"),
            Contender::GearmandOneThread | Contender::GearmandDefault => ("gearmand", "gearman-job-server"),
            Contender::HaProxy => ("haproxy", "haproxy"),
            Contender::Nginx => ("nginx", "nginx libnginx-mod-stream"),
        }
    }

    pub(super) fn protocol(self) -> &'static dyn Protocol {
        match self.server() {
            Server::Reparto => &Reparto,
            Server::Nats => &Nats,
            Server::Gearmand | Server::RepartoGearman => &Gearman,
            Server::Relay => &Relay,
        }
    }
}

/// A program that is not here, and how to get it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lacking {
    /// The program.
    pub program: &'static str,
    /// Debian's packages that have it.
    pub packages: &'static str,
}

impl fmt::Display for Lacking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is not here; install it with: apt-get install {}", self.program, self.packages)
    }
}

/// A contender whose program was found.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) contender: Contender,
    program: PathBuf,
    /// nginx's module for streams, where it is a file of its own.
    module: Option<PathBuf>,
    /// The program's version, as it tells.
    pub(super) version: String,
}

/// Finds what these servers need. Reparto's own program is given.
pub(super) fn find_all(servers: &[Server], reparto: &Path) -> (Vec<Found>, Vec<Lacking>) {
    let (mut found, mut lacking) = (Vec::new(), Vec::new());
    for contender in Contender::ALL.into_iter().filter(|it| servers.contains(&it.server())) {
        let (name, packages) = contender.program();
        let program = match contender {
            Contender::Reparto | Contender::RepartoGearman => Some(reparto.to_owned()),
            _ => find(name),
        };
        let lacks = Lacking { program: name, packages };
        match program.and_then(|program| Found::look(contender, program)) {
            Some(it) => found.push(it),
            None if lacking.contains(&lacks) => {}
            None => lacking.push(lacks),
        }
    }
    (found, lacking)
}

impl Found {
    fn look(contender: Contender, program: PathBuf) -> Option<Found> {
        let argument = if contender == Contender::Nginx { "-V" } else { "--version" };
        let argument = if contender == Contender::HaProxy { "-v" } else { argument };
        let told = output_of(&program, &[argument]);
        let module = match contender {
            Contender::Nginx => stream_module(&told)?,
            _ => None,
        };
        Some(Found { contender, program, module, version: version_in(&told).to_owned() })
    }

    /// Starts the server and connects `workers` to it, for payloads of up to `size` bytes.
    pub(super) fn start(&self, workers: usize, size: usize) -> Result<Running, PeersError> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            match self.try_start(workers, size) {
                // Somebody else may have taken the port in between.
                Err(PeersError::NotReady { .. }) if attempts < START_ATTEMPTS => {}
                outcome => return outcome,
            }
        }
    }

    fn try_start(&self, workers: usize, size: usize) -> Result<Running, PeersError> {
        let name = self.contender.name();
        let failed = PeersError::raw(name);
        let echo = match self.contender.server() {
            Server::Relay => Some(EchoServers::start(workers).map_err(&failed)?),
            _ => None,
        };
        let behind = echo.as_ref().map(EchoServers::addresses).unwrap_or_default();
        let folder = Folder::new()?;
        let port = free_port()?;
        let command = self.command(&folder, port, behind)?;
        let mut process = Process::start(name, command, folder)?;
        let (clients, workers_at) = match self.contender {
            Contender::Reparto => process.wait_for_words(ready_addresses)?,
            Contender::RepartoGearman => process.wait_for_words(|log| {
                let address = ready_address(log, "gearman=")?;
                Some((address, address))
            })?,
            _ => {
                process.wait_for_port(port)?;
                (port, port)
            }
        };
        let working = match echo {
            Some(echo) => Behind::Listening { _echo: echo },
            None => {
                let protocol = self.contender.protocol();
                let workers = Workers::connect(protocol, workers_at, workers, size).map_err(&failed)?;
                Behind::Connected(workers)
            }
        };
        Ok(Running { working, clients, _process: process })
    }

    /// Starts the server alone, and gives its addresses for clients and for workers.
    pub(super) fn start_alone(&self) -> Result<(RunningAlone, SocketAddr, SocketAddr), PeersError> {
        let folder = Folder::new()?;
        let command = self.command(&folder, free_port()?, &[])?;
        let mut process = Process::start(self.contender.name(), command, folder)?;
        let (clients, workers) = process.wait_for_words(ready_addresses)?;
        Ok((RunningAlone { _process: process }, clients, workers))
    }

    fn command(
        &self,
        folder: &Folder,
        port: SocketAddr,
        behind: &[SocketAddr],
    ) -> Result<Command, PeersError> {
        let mut command = Command::new(&self.program);
        let (host, number) = (port.ip().to_string(), port.port().to_string());
        match self.contender {
            Contender::Reparto => {
                command = balancer(&self.program);
                command.arg("--no-data");
            }
            Contender::RepartoGearman => {
                command = balancer(&self.program);
                command.args(["--no-data", "--gearman", "127.0.0.1:0"]);
            }
            Contender::Nats => {
                command.args(["-a", &host, "-p", &number]);
            }
            Contender::GearmandOneThread | Contender::GearmandDefault => {
                command.args(["-L", &host, "-p", &number, "-l", "stderr", "-q", "builtin", "--pid-file"]);
                command.arg(folder.path().join("pid"));
                if self.contender == Contender::GearmandOneThread {
                    command.args(["-t", "1"]);
                }
            }
            Contender::HaProxy => {
                let file = folder.write("haproxy.cfg", &haproxy_configuration(port, behind))?;
                command.arg("-db").arg("-f").arg(file);
            }
            Contender::Nginx => {
                let text = nginx_configuration(folder.path(), self.module.as_deref(), port, behind);
                let file = folder.write("nginx.conf", &text)?;
                command.arg("-p").arg(folder.path()).args(["-e", "stderr"]).arg("-c").arg(file);
            }
        }
        Ok(command)
    }
}

/// A server that serves, with its workers.
pub(super) struct Running {
    // Workers before the server: they would only find their connections closed.
    working: Behind,
    pub(super) clients: SocketAddr,
    _process: Process,
}

/// A server that serves, without workers.
pub(super) struct RunningAlone {
    _process: Process,
}

enum Behind {
    Connected(Workers),
    Listening { _echo: EchoServers },
}

impl Running {
    /// Ends workers and server, and tells whether a worker had failed.
    pub(super) fn stop(self) -> Result<(), RawError> {
        match self.working {
            Behind::Connected(workers) => workers.stop(),
            Behind::Listening { .. } => Ok(()),
        }
    }
}

/// A balancer on ports of its own choice. It is to be told where its data goes.
pub(crate) fn balancer(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.args(["balancer", "--clients", "127.0.0.1:0", "--workers", "127.0.0.1:0"]);
    // The user's own settings are for the user's own balancer.
    for (variable, _) in std::env::vars_os() {
        if variable.as_encoded_bytes().starts_with(b"REPARTO_") {
            command.env_remove(variable);
        }
    }
    command
}

/// Reads `ready clients=ADDR workers=ADDR`.
pub(crate) fn ready_addresses(log: &str) -> Option<(SocketAddr, SocketAddr)> {
    Some((ready_address(log, "clients=")?, ready_address(log, "workers=")?))
}

/// The address behind a key of that line, once it is whole.
fn ready_address(log: &str, key: &str) -> Option<SocketAddr> {
    let (words, _) = log.split_once("ready ")?.1.split_once('\n')?;
    words.split_whitespace().find_map(|word| word.strip_prefix(key))?.parse().ok()
}

/// One thread, and HAProxy's defaults otherwise.
fn haproxy_configuration(port: SocketAddr, behind: &[SocketAddr]) -> String {
    let servers: String =
        behind.iter().enumerate().map(|(at, it)| format!("  server worker{at} {it}\n")).collect();
    format!(
        "global\n  nbthread 1\ndefaults\n  mode tcp\n  timeout connect 10s\n  timeout client 60s\n  \
         timeout server 60s\nfrontend clients\n  bind {port}\n  default_backend workers\n\
         backend workers\n  balance roundrobin\n{servers}"
    )
}

/// One process, so that killing it ends it all, and nginx's defaults otherwise.
fn nginx_configuration(
    folder: &Path,
    module: Option<&Path>,
    port: SocketAddr,
    behind: &[SocketAddr],
) -> String {
    let load = module.map(|it| format!("load_module {};\n", it.display())).unwrap_or_default();
    let servers: String = behind.iter().map(|it| format!(" server {it};")).collect();
    format!(
        "{load}daemon off;\nmaster_process off;\nworker_processes 1;\nerror_log stderr warn;\n\
         pid {}/pid;\nevents {{ worker_connections 2048; }}\nstream {{\n  upstream workers {{{servers} }}\n  \
         server {{ listen {port}; proxy_pass workers; }}\n}}\n",
        folder.display()
    )
}

/// Where nginx has its module for streams, from what `nginx -V` tells: `Some(None)` when it is built in, `None` when
/// there is none.
fn stream_module(told: &str) -> Option<Option<PathBuf>> {
    let flags = || told.split_whitespace();
    if flags().any(|flag| flag == "--with-stream") {
        return Some(None);
    }
    let folder = flags().find_map(|flag| flag.strip_prefix("--modules-path="))?;
    let module = Path::new(folder).join("ngx_stream_module.so");
    module.is_file().then_some(Some(module))
}

/// The first word of a text that looks like a version.
pub(crate) fn version_in(text: &str) -> &str {
    let words = text.split(|c: char| c.is_whitespace() || c == '/');
    words
        .map(|word| word.trim_start_matches('v'))
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.'))
        .unwrap_or("of unknown version")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_tell() {
        assert_eq!(version_in("\ngearmand 1.1.20+ds - https://example.org\n"), "1.1.20+ds");
        assert_eq!(version_in("nats-server: v2.9.10"), "2.9.10");
        assert_eq!(version_in("HAProxy version 2.6.12-1 2026/10/17 - https://"), "2.6.12-1");
        assert_eq!(version_in("nginx version: nginx/1.22.1\nbuilt with"), "1.22.1");
        assert_eq!(version_in("hello"), "of unknown version");
    }

    #[test]
    fn addresses_are_read_once_the_whole_line_is_there() {
        let line = "ready clients=127.0.0.1:81 workers=127.0.0.1:82";
        assert_eq!(ready_addresses(line), None);
        let addresses = ready_addresses(&format!("[WARN] x\n{line}\n")).unwrap();
        assert_eq!((addresses.0.port(), addresses.1.port()), (81, 82));
        let line = "ready clients=127.0.0.1:81 workers=127.0.0.1:82 gearman=127.0.0.1:83\n";
        assert_eq!(ready_address(line, "gearman=").map(|it| it.port()), Some(83));
    }

    #[test]
    fn a_stream_module_is_built_in_or_a_file_or_not_there() {
        assert_eq!(stream_module("configure arguments: --with-stream --x"), Some(None));
        assert_eq!(stream_module("--modules-path=/nowhere --with-stream=dynamic"), None);
        assert_eq!(stream_module("nothing"), None);
    }

    #[test]
    fn a_server_is_named_as_the_json_names_it() {
        for server in Server::ALL {
            assert_eq!(server.name().parse(), Ok(server));
        }
        assert!(
            "redis"
                .parse::<Server>()
                .is_err_and(|sentence| sentence.contains("they are reparto, reparto_gearman, nats"))
        );
    }

    #[test]
    fn relays_are_told_every_worker() {
        let behind = [([127, 0, 0, 1], 81).into(), ([127, 0, 0, 1], 82).into()];
        let port = ([127, 0, 0, 1], 80).into();
        let nginx = nginx_configuration(Path::new("/tmp/x"), None, port, &behind);
        let haproxy = haproxy_configuration(port, &behind);
        for worker in ["127.0.0.1:81", "127.0.0.1:82"] {
            assert!(nginx.contains(worker) && haproxy.contains(worker));
        }
    }
}

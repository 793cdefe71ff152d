//! Servers as child processes: found, started in a folder of their own, and killed and reaped whatever happens.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::PeersError;

/// Time for a server to serve.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// How often it is looked whether it does.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Bytes of a server's log that are read, from its end.
const LOG_BYTES: u64 = 2_000;

/// Where servers are that no PATH of a user who is not root has.
const SYSTEM_FOLDERS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Finds a program in PATH, or where servers are.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(SYSTEM_FOLDERS.iter().map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(|program| program.is_file())
}

/// A loopback port that was free a moment ago.
pub(crate) fn free_port() -> Result<SocketAddr, PeersError> {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .map_err(|error| PeersError::Options(format!("no free port on 127.0.0.1: {error}")))
}

/// A folder for one server's files, removed with it.
#[derive(Debug)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Result<Folder, PeersError> {
        Self::new_in(&std::env::temp_dir())
    }

    /// One in another folder than the system's for temporary files.
    pub(crate) fn new_in(parent: &Path) -> Result<Folder, PeersError> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("reparto-bench-{}-{number}", std::process::id()));
        // Not create_dir_all: a folder that is there already may be somebody else's.
        fs::create_dir(&path).map_err(PeersError::file(&path, "making a temporary folder"))?;
        Ok(Folder(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> Result<PathBuf, PeersError> {
        let path = self.0.join(name);
        fs::write(&path, text).map_err(PeersError::file(&path, "writing"))?;
        Ok(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What a server still holds open stays behind in the temporary folder, which does no harm.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A running server. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Process {
    name: &'static str,
    child: Child,
    log: PathBuf,
    // Last, so that it is removed when the server is gone.
    _folder: Folder,
}

impl Process {
    /// Starts a server. What it writes goes to a file of its folder.
    pub(crate) fn start(
        name: &'static str,
        mut command: Command,
        folder: Folder,
    ) -> Result<Process, PeersError> {
        let log = folder.path().join("log");
        let file = File::create(&log).map_err(PeersError::file(&log, "making a file"))?;
        let both = file.try_clone().map_err(PeersError::file(&log, "opening it twice"))?;
        command.stdin(Stdio::null()).stdout(file).stderr(both).current_dir(folder.path());
        // A group of its own: Ctrl-C reaches the bench alone, which then ends the server.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let child = command.spawn().map_err(|source| PeersError::Spawn {
            name,
            program: command.get_program().into(),
            source,
        })?;
        Ok(Process { name, child, log, _folder: folder })
    }

    /// Waits until it takes connections there.
    pub(crate) fn wait_for_port(&mut self, address: SocketAddr) -> Result<(), PeersError> {
        self.wait("did not listen", |_| TcpStream::connect(address).ok().map(|_| ()))
    }

    /// Waits until its log says `wanted` gives something.
    pub(crate) fn wait_for_words<T>(&mut self, wanted: impl Fn(&str) -> Option<T>) -> Result<T, PeersError> {
        self.wait("did not say that it is ready", |log| wanted(log))
    }

    fn wait<T>(&mut self, failed: &str, ready: impl Fn(&str) -> Option<T>) -> Result<T, PeersError> {
        let until = Instant::now() + READY_WITHIN;
        loop {
            let ended = self.child.try_wait().ok().flatten();
            let log = self.last_words();
            let not_ready = |what| PeersError::NotReady { name: self.name, what, log: log.trim().to_owned() };
            match (ended, ready(&log)) {
                (Some(status), _) => return Err(not_ready(format!("ended before it served, with {status}"))),
                (None, Some(it)) => return Ok(it),
                (None, None) if Instant::now() < until => {}
                _ => return Err(not_ready(format!("{failed} within {} s", READY_WITHIN.as_secs()))),
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    /// The end of what it wrote.
    fn last_words(&self) -> String {
        let read = || -> std::io::Result<Vec<u8>> {
            let mut file = File::open(&self.log)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(LOG_BYTES)))?;
            let mut bytes = Vec::new();
            file.take(LOG_BYTES).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has ended already cannot be killed, and need not.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a program writes when it is asked for its version.
pub(crate) fn output_of(program: &Path, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.map(|it| [it.stdout, it.stderr].concat()).unwrap_or_default();
    String::from_utf8_lossy(&output).into_owned()
}

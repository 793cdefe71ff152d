//! Workers that listen and send back what comes: what stands behind a relay.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use super::RawError;

/// Bytes read at once.
const BUFFER_BYTES: usize = 512 * 1024;

/// Most connections that one of them keeps.
const MAX_CONNECTIONS: usize = 1024;

/// Listening workers, each connection on a thread of its own. Dropping them ends their connections and threads.
#[derive(Debug)]
pub struct EchoServers {
    addresses: Vec<SocketAddr>,
    ending: Arc<AtomicBool>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
    threads: Vec<JoinHandle<()>>,
}

impl EchoServers {
    /// Starts `count` of them on free loopback ports.
    ///
    /// # Errors
    /// No port to listen on.
    pub fn start(count: usize) -> Result<EchoServers, RawError> {
        let mut servers = EchoServers {
            addresses: Vec::new(),
            ending: Arc::default(),
            streams: Arc::default(),
            threads: Vec::new(),
        };
        for _ in 0..count {
            let listening = TcpListener::bind("127.0.0.1:0").and_then(|it| Ok((it.local_addr()?, it)));
            let (address, listener) = listening.map_err(RawError::io("listening on 127.0.0.1"))?;
            servers.addresses.push(address);
            let (ending, streams) = (Arc::clone(&servers.ending), Arc::clone(&servers.streams));
            servers.threads.push(thread::spawn(move || accept(&listener, &ending, &streams)));
        }
        Ok(servers)
    }

    /// Where they listen.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }
}

impl Drop for EchoServers {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Release);
        for stream in locked(&self.streams).iter() {
            // One that has ended already cannot be shut down, and need not.
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        for address in &self.addresses {
            // Wakes the accepting thread.
            let _ = TcpStream::connect(address);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn accept(listener: &TcpListener, ending: &AtomicBool, streams: &Mutex<Vec<TcpStream>>) {
    let mut threads = Vec::new();
    for stream in listener.incoming() {
        if ending.load(Ordering::Acquire) || threads.len() >= MAX_CONNECTIONS {
            break;
        }
        let Ok((stream, closer)) = stream.and_then(|stream| Ok((stream.try_clone()?, stream))) else {
            continue;
        };
        locked(streams).push(closer);
        if ending.load(Ordering::Acquire) {
            // The one who ends us may have looked through the streams before this one was there.
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        threads.push(thread::spawn(move || echo(stream)));
    }
    for thread in threads {
        let _ = thread.join();
    }
}

fn echo(mut stream: TcpStream) {
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let mut buffer = vec![0; BUFFER_BYTES];
    // Whatever ends a connection, its client sees it, and says so.
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..read]).is_err() {
            return;
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

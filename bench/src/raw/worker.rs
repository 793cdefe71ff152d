//! Workers that connect to a server and echo, each on a thread of its own.

use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use super::link::Link;
use super::{Output, Protocol, RawError, WorkerCodec};

/// Payloads up to this many bytes are read, then written, with calls that block: every server reads from a worker
/// whatever its clients do. With larger ones a worker reads while its results leave.
const BLOCKING_BYTES: usize = 4 * 1024;

/// Connected workers. Dropping them closes their connections and ends their threads.
#[derive(Debug)]
pub struct Workers {
    ending: Arc<AtomicBool>,
    workers: Vec<(TcpStream, JoinHandle<Result<(), RawError>>)>,
}

impl Workers {
    /// Connects `count` workers, for payloads of up to `size` bytes, and waits until the server knows them.
    ///
    /// # Errors
    /// A server that does not take a connection, refuses, or does not answer.
    pub fn connect(
        protocol: &dyn Protocol,
        address: SocketAddr,
        count: usize,
        size: usize,
    ) -> Result<Workers, RawError> {
        let mut workers = Workers { ending: Arc::default(), workers: Vec::new() };
        for number in 0..count {
            let mut codec = protocol.worker(number, size);
            let frame_bytes = size.saturating_add(protocol.overhead_bytes());
            let mut link = Link::connect(address, Output::default(), frame_bytes, size > BLOCKING_BYTES)?;
            codec.greet(&mut link.output);
            while !codec.ready() {
                link.exchange()?;
                answer(&mut link, codec.as_mut())?;
            }
            let (closer, ending) = (link.closer()?, Arc::clone(&workers.ending));
            let thread = thread::spawn(move || work(link, codec.as_mut(), &ending));
            workers.workers.push((closer, thread));
        }
        Ok(workers)
    }

    /// Ends them, and tells whether one had failed before.
    ///
    /// # Errors
    /// The first worker's failure.
    pub fn stop(mut self) -> Result<(), RawError> {
        self.end()
    }

    fn end(&mut self) -> Result<(), RawError> {
        self.ending.store(true, Ordering::Release);
        let mut outcome = Ok(());
        for (closer, thread) in self.workers.drain(..) {
            // One whose connection is gone already ends by itself.
            let _ = closer.shutdown(Shutdown::Both);
            let ended =
                thread.join().unwrap_or_else(|_| Err(RawError::Load("a worker's thread panicked".into())));
            outcome = outcome.and(ended);
        }
        outcome
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        // Who wants to know asks with stop().
        let _ = self.end();
    }
}

fn work(mut link: Link, codec: &mut dyn WorkerCodec, ending: &AtomicBool) -> Result<(), RawError> {
    loop {
        let outcome = link.exchange().and_then(|()| answer(&mut link, codec));
        match outcome {
            _ if ending.load(Ordering::Acquire) => return Ok(()),
            // Nobody may have work for a while: that is no fault.
            Ok(()) | Err(RawError::Silent(_)) => {}
            Err(error) => {
                // Another handle to the connection is kept, so dropping this one does not close it.
                if let Ok(closer) = link.closer() {
                    let _ = closer.shutdown(Shutdown::Both);
                }
                return Err(error);
            }
        }
    }
}

fn answer(link: &mut Link, codec: &mut dyn WorkerCodec) -> Result<(), RawError> {
    let (input, output) = link.split();
    let taken = codec.read(input, output)?;
    link.consume(taken);
    Ok(())
}

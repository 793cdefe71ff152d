//! Signals that stop the balancer: the first in good order, whatever it is doing, the second at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use reparto_balancer::Handle;

/// Exit code after a second signal: 128 and the number of SIGINT, as shells have it.
const INTERRUPTED: i32 = 130;

/// Whether a signal came, and whom it is to be told.
#[derive(Clone)]
pub(super) struct Signals {
    asked: Arc<AtomicBool>,
    /// The balancer, once there is one.
    handle: Arc<Mutex<Option<Handle>>>,
}

/// Catches SIGTERM, SIGINT and SIGHUP from now on.
pub(super) fn catch() -> Result<Signals, ctrlc::Error> {
    let signals = Signals { asked: Arc::default(), handle: Arc::default() };
    let caught = signals.clone();
    ctrlc::set_handler(move || {
        if caught.asked.swap(true, Ordering::AcqRel) {
            std::process::exit(INTERRUPTED);
        }
        caught.tell();
    })?;
    Ok(signals)
}

impl Signals {
    /// Whether a signal has come.
    pub(super) fn asked_to_stop(&self) -> bool {
        self.asked.load(Ordering::Acquire)
    }

    /// Has signals stop a balancer, one that has come already among them.
    pub(super) fn stop_from_now_on(&self, handle: Handle) {
        *self.handle.lock().unwrap_or_else(PoisonError::into_inner) = Some(handle);
        if self.asked_to_stop() {
            self.tell();
        }
    }

    fn tell(&self) {
        if let Some(handle) = &*self.handle.lock().unwrap_or_else(PoisonError::into_inner) {
            handle.shutdown();
        }
    }
}

//! Why a side-by-side run, or a part of it, did not come about.

use std::io;
use std::path::PathBuf;

use crate::raw::RawError;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PeersError {
    /// A file or folder cannot be used.
    #[error("{}: {what} failed: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A server's program cannot be started.
    #[error("{name} cannot be started from {}: {source}", program.display())]
    Spawn {
        /// The server.
        name: &'static str,
        /// Its program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A server ended before it served, or was not ready in time.
    #[error("{name} {what}; its last words: {log}")]
    NotReady {
        /// The server.
        name: &'static str,
        /// What it did instead.
        what: String,
        /// The end of what it wrote.
        log: String,
    },
    /// A client or worker could not go on.
    #[error("{server}: {source}")]
    Raw {
        /// The server it spoke to.
        server: &'static str,
        /// Why.
        source: RawError,
    },
    /// Reparto's own libraries could not go on.
    #[error("through Reparto's libraries: {0}")]
    Library(String),
    /// Engines that a part needs cannot be brought up or used.
    #[error("{0}")]
    Engines(String),
    /// A run that makes no sense.
    #[error("{0}")]
    Options(String),
    /// A chart cannot be drawn.
    #[error("the chart cannot be drawn: {0}")]
    Chart(String),
    /// The caller's flag was raised.
    #[error("interrupted")]
    Interrupted,
}

impl PeersError {
    pub(crate) fn raw(server: &'static str) -> impl Fn(RawError) -> PeersError {
        move |source| match source {
            RawError::Interrupted => PeersError::Interrupted,
            source => PeersError::Raw { server, source },
        }
    }

    pub(crate) fn file(path: impl Into<PathBuf>, what: &'static str) -> impl FnOnce(io::Error) -> PeersError {
        let path = path.into();
        move |source| PeersError::File { path, what, source }
    }
}

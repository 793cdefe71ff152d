//! What durability costs: background tasks through Reparto, beside other servers that keep theirs, on this machine.
//!
//! Every server is started from its own program on free loopback ports, with its data in a temporary folder, and
//! driven by [`raw`](crate::raw) clients. As in [`peers`](crate::peers) the rounds are interleaved and ratios count.
//! How fast the disk is decides much, so the run says what a synced write costs, and refuses to measure on a file
//! system in memory, where syncing is free.
//!
//! - [`Options`] says what to run, [`run`] runs it, and the [`Report`] has what came of it: [`Report::tables`] for
//!   people, [`Report::json`] for programs, [`write_page`] for docs/BENCHMARKS.md.
//! - [`Part`]s: handing in; the whole life of tasks, also through RabbitMQ and PostgreSQL; foreground tasks with the store on and off; a restart.

mod accept;
mod bars;
#[cfg(unix)]
mod bus;
#[cfg(not(unix))]
mod bus {
    //! Engines are brought up on Unix alone.
    use super::report::BusReport;
    use super::run::Session;
    use crate::peers::Lacking;
    use crate::peers::error::PeersError;

    pub(super) fn lacking() -> Vec<Lacking> {
        Vec::new()
    }

    pub(super) fn run(_: &Session<'_>) -> Result<Option<BusReport>, PeersError> {
        Ok(None)
    }
}
mod disk;
mod foreground;
mod life;
mod page;
mod peer;
mod report;
mod restart;
mod run;

pub use disk::Disk;
pub use page::write as write_page;
pub use peer::Peer;
pub use report::{AcceptReport, BusReport, LifeReport, Report, RestartReport, Row};
pub use run::{Options, Part, run};

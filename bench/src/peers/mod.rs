//! The same work through Reparto and through what people use today, side by side on this machine.
//!
//! Every server is started from its own program, on free loopback ports, and driven by [`raw`](crate::raw)
//! clients and workers that are as much alike as the protocols let them be. The rounds are interleaved: each
//! server has its turn, then each again, so that whatever else the machine does hurts all alike. A server is
//! started anew for each turn. What counts are ratios inside a round, and their medians over the rounds.
//!
//! - [`Options`] says what to run, [`run`] runs it, and the [`Report`] has what came of it: [`Report::tables`] for
//!   people, [`Report::json`] for programs, [`page::write`] for docs/BENCHMARKS.md.
//! - Gearman's server runs with one thread and with its default, relays are HAProxy and nginx: the faster of two
//!   counts, in each scenario.

mod bars;
mod chart;
mod closed;
pub(crate) mod error;
mod flood;
mod library;
mod machine;
mod open_loop;
pub mod page;
pub(crate) mod process;
pub(crate) mod report;
mod run;
mod scenario;
pub(crate) mod server;
pub(crate) mod table;
pub(crate) mod turns;

pub use error::PeersError;
pub use machine::Machine;
pub use report::{
    ClosedReport, Contestant, Figures, FloodReport, LibraryReport, OpenLoopReport, Ratio, Report, median,
};
pub use run::{Options, Parts, run};
pub use scenario::Scenario;
pub use server::{Lacking, Server};
pub use table::Table;

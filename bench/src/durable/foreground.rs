//! Foreground tasks beside a store that has nothing to do: what they pay for its being there.

use super::peer::{Balancer, Store};
use super::run::{Options, Session};
use crate::peers::error::PeersError;
use crate::peers::process::Folder;
use crate::peers::{Figures, Scenario};
use crate::raw::{Load, Reparto, Workers, drive};

/// The shape of the closed loop.
pub(super) const SCENARIO: Scenario = Scenario { connections: 4, window: 128, size: 64 };

/// Times that every round has both: what is looked for is a few hundredths, which one pair more or less would hide.
pub(super) const PAIRS: usize = 3;

/// The rounds with the store on, and with it off.
pub(super) fn run(session: &Session<'_>) -> Result<Vec<Vec<Option<Figures>>>, PeersError> {
    let load = session.load(SCENARIO);
    let name = |on: &bool| if *on { "reparto, store on" } else { "reparto, store off" };
    let mut all = vec![Vec::new(); 2];
    for _ in 0..PAIRS {
        let some =
            session.rounds(&[true, false], name, |on| measure(session.options, &load, *on, session.stop))?;
        all.iter_mut().zip(some).for_each(|(all, some)| all.extend(some));
    }
    Ok(all)
}

fn measure(
    options: &Options,
    load: &Load,
    on: bool,
    stop: &std::sync::atomic::AtomicBool,
) -> Result<Figures, PeersError> {
    let failed = PeersError::raw("reparto");
    let data = Folder::new_in(&options.folder)?;
    let store = if on { Store::In(data.path(), "fsync") } else { Store::Off };
    let balancer = Balancer::start(&options.program, &options.folder, store)?;
    let workers =
        Workers::connect(&Reparto, balancer.workers, SCENARIO.workers(), load.size).map_err(&failed)?;
    let driven = drive(&Reparto, balancer.clients, load, stop);
    match (workers.stop(), driven) {
        (Err(error), Err(_)) => Err(failed(error)),
        (_, driven) => driven.map(|it| Figures::from(&it)).map_err(failed),
    }
}

//! Where effects go: a list to be looked at later, or a caller that carries each out at once.

use super::{Assignment, AssignmentId, Effect, Payload, Peer};

/// What is its own about one of a pull worker's assignments that come together.
#[derive(Debug, Clone, Copy)]
pub struct Pulled<'p> {
    /// Which it is.
    pub assignment: AssignmentId,
    /// [`Assignment::number`].
    pub number: u64,
    /// [`Assignment::payload`].
    pub payload: Payload<'p>,
}

/// Takes the scheduler's effects, in the order in which they are to be carried out.
///
/// A list of them is the simplest, and what tests want. A caller that carries effects out as they come spares
/// itself the list, and the look-up of each assignment's details.
///
/// ```
/// use reparto_balancer::scheduler::{Effect, Effects, Peer};
/// #[derive(Default)]
/// struct Pings(Vec<Peer>, usize);
/// impl<'a> Effects<'a> for Pings {
///     fn push(&mut self, effect: Effect<'a>) {
///         self.1 += 1;
///         if let Effect::Ping { peer } = effect {
///             self.0.push(peer);
///         }
///     }
///     fn count(&self) -> usize {
///         self.1
///     }
/// }
/// let mut pings = Pings::default();
/// pings.push(Effect::Ping { peer: Peer { index: 4, generation: 1 } });
/// assert_eq!((pings.0.len(), pings.count()), (1, 1));
/// ```
pub trait Effects<'a> {
    /// Takes an effect.
    fn push(&mut self, effect: Effect<'a>);

    /// Takes an [`Effect::Assign`], with the details that [`Scheduler::assignment`](super::Scheduler::assignment)
    /// would give.
    #[inline]
    fn assign(&mut self, peer: Peer, assignment: AssignmentId, details: Assignment<'_>) {
        let _ = details;
        self.push(Effect::Assign { peer, assignment });
    }

    /// Takes an [`Effect::Result`], which comes as often as assignments do.
    #[inline]
    fn result(&mut self, peer: Peer, id: u64, payload: Payload<'a>) {
        self.push(Effect::Result { peer, id, payload });
    }

    /// Takes assignments to one worker of first attempts at tasks of one action with the usual options, as
    /// [`assign`](Self::assign) takes each: all that `assignments` gives. What it gives is done as it is taken.
    #[inline]
    fn assign_some<'p>(
        &mut self,
        peer: Peer,
        action: &str,
        assignments: &mut impl Iterator<Item = (AssignmentId, Payload<'p>)>,
    ) {
        for (assignment, payload) in assignments {
            self.assign(peer, assignment, Assignment::first(action, payload));
        }
    }

    /// Takes results for one client, with the client's numbers for the tasks, as [`result`](Self::result) takes each:
    /// all that `results` gives. What it gives is done as it is taken.
    #[inline]
    fn result_some(&mut self, peer: Peer, results: &mut impl Iterator<Item = (u64, Payload<'a>)>) {
        for (id, payload) in results {
            self.result(peer, id, payload);
        }
    }

    /// Takes an [`Effect::Created`] for one client for each of the numbers that `ids` gives. What it gives is done as it
    /// is taken.
    #[inline]
    fn created_some(&mut self, peer: Peer, ids: &mut impl Iterator<Item = u64>) {
        for id in ids {
            self.push(Effect::Created { peer, id });
        }
    }

    /// Takes assignments to one pull worker of first attempts at tasks of one action with the usual options, with the
    /// form of its questions and the number of each, as [`assign`](Self::assign) takes each: all that `assignments`
    /// gives. What it gives is done as it is taken.
    #[inline]
    fn assign_pulled<'p>(
        &mut self,
        peer: Peer,
        (action, form): (&str, u8),
        assignments: &mut impl Iterator<Item = Pulled<'p>>,
    ) {
        for Pulled { assignment, number, payload } in assignments {
            self.assign(peer, assignment, Assignment { number, form, ..Assignment::first(action, payload) });
        }
    }

    /// Takes an [`Effect::NoTask`] so many times.
    #[inline]
    fn no_task_some(&mut self, peer: Peer, count: usize) {
        for _ in 0..count {
            self.push(Effect::NoTask { peer });
        }
    }

    /// How many came so far. Long work is done in parts, which end when enough has come of them.
    fn count(&self) -> usize;
}

impl<'a> Effects<'a> for Vec<Effect<'a>> {
    #[inline]
    fn push(&mut self, effect: Effect<'a>) {
        Vec::push(self, effect);
    }

    fn count(&self) -> usize {
        self.len()
    }
}

//! What a worker offers: handlers by the names of their actions.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use reparto_protocol::limits;

use crate::error::ConfigError;
use crate::task::{Task, TaskError};

type Handler = Box<dyn Fn(&Task) -> Result<Bytes, TaskError> + Send + Sync>;

/// One action: its name and the handler that does it.
pub(crate) struct Action {
    name: Box<str>,
    handler: Handler,
}

impl Action {
    pub(crate) fn without_handler(name: &str) -> Action {
        Action { name: name.into(), handler: Box::new(|_| Err("this action has no handler".into())) }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn run(&self, task: &Task) -> Result<Bytes, TaskError> {
        (self.handler)(task)
    }
}

impl fmt::Debug for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// A set of actions, for [`WorkerBuilder::actions`](crate::WorkerBuilder::actions) and
/// [`WorkerHandle::set_actions`](crate::WorkerHandle::set_actions).
///
/// ```
/// use reparto_worker::{Actions, Task};
/// let actions = Actions::new()
///     .with("upper", |task: &Task| Ok(task.payload().to_ascii_uppercase().into()))
///     .with("never", |_: &Task| Err("this one never works".into()));
/// assert_eq!(actions.names().collect::<Vec<_>>(), ["never", "upper"]);
/// ```
#[derive(Default, Clone)]
pub struct Actions {
    by_name: HashMap<Box<str>, Arc<Action>>,
}

impl Actions {
    /// None yet.
    pub fn new() -> Actions {
        Actions::default()
    }

    /// These and one more; a handler of the same name is replaced.
    #[must_use]
    pub fn with<H>(mut self, name: impl Into<String>, handler: H) -> Actions
    where
        H: Fn(&Task) -> Result<Bytes, TaskError> + Send + Sync + 'static,
    {
        let name: Box<str> = name.into().into();
        let action = Action { name: name.clone(), handler: Box::new(handler) };
        self.by_name.insert(name, Arc::new(action));
        self
    }

    /// These and those; a handler of the same name is replaced.
    #[must_use]
    pub fn and(mut self, others: Actions) -> Actions {
        self.by_name.extend(others.by_name);
        self
    }

    /// Their names, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let mut names: Vec<&str> = self.by_name.keys().map(|name| &**name).collect();
        names.sort_unstable();
        names.into_iter()
    }

    /// Whether an action of this name is among them.
    pub fn contains(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Arc<Action>> {
        self.by_name.get(name)
    }

    /// Checks what the protocol asks of names and of their number.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let count = self.by_name.len();
        if count == 0 || count > limits::MAX_ACTIONS_PER_WORKER {
            return Err(ConfigError::ActionCount { count });
        }
        match self.names().find(|name| name.is_empty() || name.len() > limits::MAX_ACTION_BYTES) {
            Some(name) => Err(ConfigError::ActionName { bytes: name.len() }),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Actions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

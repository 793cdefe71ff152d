//! The options of `reparto submit --background`.

use std::time::{Duration, SystemTime};

use reparto_client::TaskBuilder;
use reparto_protocol::limits;

use super::{short_text, task_time};
use crate::parse;

/// What a line's number may add to the key of `--lines`: a colon and twenty digits.
const LINE_NUMBER_BYTES: usize = 21;

/// What is asked for beside `--background`.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Background tasks")]
pub(super) struct BackgroundArgs {
    /// Hand the task over for good: print its id as soon as it is durable, and do not wait for its result.
    #[arg(long, conflicts_with_all = ["wait", "key"])]
    background: bool,

    /// Print the result as usual, and have the task and its outcome kept as well: `reparto tasks` lists it.
    #[arg(long, conflicts_with_all = ["background", "wait", "key"])]
    record: bool,

    /// Time before the task may begin.
    #[arg(long, value_name = "TIME", requires = "background", value_parser = task_time)]
    delay: Option<Duration>,

    /// When the task may begin, such as 2026-11-21T06:00 (here) or 2026-11-21T06:00:00Z.
    #[arg(long, value_name = "WHEN", requires = "background", value_parser = parse::moment)]
    at: Option<SystemTime>,

    /// Time before the second attempt, if the worker asks for one; it doubles with every further one, and a random
    /// half of it is left out. The balancer's default is 1s.
    #[arg(long, value_name = "TIME", requires = "background", value_parser = task_time)]
    backoff: Option<Duration>,

    /// Longest time between two attempts. The balancer's default is 5m.
    #[arg(long, value_name = "TIME", requires = "background", value_parser = task_time)]
    max_backoff: Option<Duration>,

    /// Tasks of one action and key are taken in once; the others are given its id. With --lines each line has a key
    /// of its own: this one, a colon and its number.
    #[arg(long, value_name = "KEY", requires = "background", value_parser = short_text)]
    idempotency_key: Option<String>,

    /// How long that key stands for the task. The balancer's default is 1d.
    #[arg(long, value_name = "TIME", requires = "idempotency_key", value_parser = task_time)]
    idempotency_window: Option<Duration>,
}

impl BackgroundArgs {
    /// The task is to be handed over for good.
    pub(super) fn is_wanted(&self) -> bool {
        self.background
    }

    /// Checks what no option shows by itself.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub(super) fn check(&self, lines: bool) -> Result<(), String> {
        let most = limits::MAX_IDEMPOTENCY_KEY_BYTES - LINE_NUMBER_BYTES;
        match &self.idempotency_key {
            Some(key) if lines && key.len() > most => Err(format!(
                "the --idempotency-key is {} bytes long, and with --lines it may be at most {most}, since the line's \
                 number comes behind it",
                key.len()
            )),
            _ => Ok(()),
        }
    }

    /// Gives the options to a task.
    pub(super) fn apply<'a>(&'a self, mut task: TaskBuilder<'a>) -> TaskBuilder<'a> {
        if self.record {
            task = task.recorded(true);
        }
        if let Some(delay) = self.delay {
            task = task.delay(delay);
        }
        if let Some(at) = self.at {
            task = task.start_at(at);
        }
        if let Some(backoff) = self.backoff {
            task = task.backoff(backoff);
        }
        if let Some(most) = self.max_backoff {
            task = task.max_backoff(most);
        }
        if let Some(key) = &self.idempotency_key {
            task = task.idempotency_key(key);
        }
        if let Some(window) = self.idempotency_window {
            task = task.idempotency_window(window);
        }
        task
    }

    /// The key of a line's own, if there are keys.
    pub(super) fn key_of_line(&self, line: u64) -> Option<String> {
        self.idempotency_key.as_ref().map(|key| format!("{key}:{line}"))
    }
}

//! Which queues of plain AMQP the balancer takes tasks from (`--amqp-queue`), and which it hands tasks to
//! (`--amqp-worker`).

use std::collections::HashSet;
use std::sync::Arc;

use reparto_balancer::AmqpWorker;
use reparto_balancer::background::MOST_AMQP_WORKERS;
use reparto_protocol::limits;

use super::{Args, File};
use crate::parse;

/// Longest name of a queue of other programs, in bytes: there must be room for `.dead` behind it.
const MOST_QUEUE_NAME: usize = 250;
/// How a worker is written.
const HINT: &str = "write ACTION=QUEUE, perhaps with ?reply=no, ?in_flight=N or ?limit=TIME behind it";

/// The queues that tasks are taken from, and the workers behind queues.
pub(super) type Plain = (Vec<Arc<str>>, Vec<AmqpWorker>);

/// Reads both.
///
/// # Errors
/// A sentence that says which flag is wrong, and why.
pub(super) fn settings(args: &Args, file: &File) -> Result<Plain, String> {
    let queues = if args.amqp_queue.is_empty() { &file.amqp_queue } else { &args.amqp_queue };
    let workers = if args.amqp_worker.is_empty() { &file.amqp_worker } else { &args.amqp_worker };
    let mut taken = Vec::new();
    for text in queues {
        let name = queue_name(text).map_err(|reason| format!("--amqp-queue '{text}': {reason}"))?;
        if !taken.contains(&name) {
            taken.push(name);
        }
    }
    let mut handed = Vec::new();
    let mut known = HashSet::new();
    for text in workers {
        let worker = worker(text).map_err(|reason| format!("--amqp-worker '{text}': {reason}"))?;
        if !known.insert((worker.action.clone(), Arc::clone(&worker.queue))) {
            return Err(format!("--amqp-worker '{text}': this action has that queue already"));
        }
        if taken.contains(&worker.queue) {
            return Err(format!(
                "--amqp-worker '{text}': tasks are taken from that queue (--amqp-queue), and would go round in circles"
            ));
        }
        handed.push(worker);
    }
    if handed.len() > MOST_AMQP_WORKERS {
        return Err(format!(
            "--amqp-worker: there are {}, and {MOST_AMQP_WORKERS} is the limit",
            handed.len()
        ));
    }
    Ok((taken, handed))
}

fn queue_name(text: &str) -> Result<Arc<str>, String> {
    match text.len() {
        0 => Err("the queue has no name".to_owned()),
        1..=MOST_QUEUE_NAME => Ok(text.into()),
        bytes => Err(format!("the queue's name has {bytes} bytes, and {MOST_QUEUE_NAME} is the limit")),
    }
}

fn worker(text: &str) -> Result<AmqpWorker, String> {
    let (action, rest) = text.split_once('=').ok_or(HINT)?;
    let (queue, options) = rest.split_once('?').unwrap_or((rest, ""));
    if !(1..=limits::MAX_ACTION_BYTES).contains(&action.len()) {
        return Err(format!("an action's name has 1 to {} bytes; {HINT}", limits::MAX_ACTION_BYTES));
    }
    let mut worker = AmqpWorker::new(action, &queue_name(queue)?);
    for option in options.split('&').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some(("reply", "no")) => worker.replies = false,
            Some(("reply", "yes")) => worker.replies = true,
            Some(("in_flight", number)) => {
                let number = number.parse().ok().filter(|number| (1..=limits::MAX_THREADS).contains(number));
                worker.in_flight =
                    number.ok_or_else(|| format!("in_flight is 1 to {}", limits::MAX_THREADS))?;
            }
            Some(("limit", time)) => {
                worker.limit = parse::duration(time)?;
                if worker.limit.is_zero() {
                    return Err("limit is more than 0".to_owned());
                }
            }
            _ => return Err(format!("'{option}' is no option; {HINT}")),
        }
    }
    Ok(worker)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn plain(queues: &[&str], workers: &[&str]) -> Result<Plain, String> {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let args = Args { amqp_queue: owned(queues), amqp_worker: owned(workers), ..Args::default() };
        settings(&args, &File::default())
    }

    #[test]
    fn queues_and_workers_are_read_with_their_options() {
        let (queues, workers) = plain(
            &["orders", "orders", "others"],
            &["resize=images", "mail=mails?reply=no&in_flight=8&limit=5m"],
        )
        .unwrap();
        assert_eq!(queues, ["orders".into(), "others".into()]);
        assert_eq!(workers[0], AmqpWorker::new("resize", "images"));
        let mail = AmqpWorker {
            replies: false,
            in_flight: 8,
            limit: Duration::from_secs(300),
            ..AmqpWorker::new("mail", "mails")
        };
        assert_eq!(workers[1], mail);
    }

    #[test]
    fn the_file_has_them_where_no_flag_does() {
        let file: File = toml::from_str("amqp_queue = [\"a\"]\namqp_worker = [\"x=y\"]").unwrap();
        let (queues, workers) = settings(&Args::default(), &file).unwrap();
        assert_eq!((&*queues[0], &*workers[0].queue), ("a", "y"));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let long = "q".repeat(251);
        for (queues, workers, said) in [
            (&[""][..], &[][..], "no name"),
            (&[&*long], &[], "251 bytes"),
            (&[], &["x"], "write ACTION=QUEUE"),
            (&[], &["=q"], "an action's name"),
            (&[], &["x="], "no name"),
            (&[], &["x=q?reply=maybe"], "'reply=maybe' is no option"),
            (&[], &["x=q?in_flight=0"], "in_flight is 1 to"),
            (&[], &["x=q?limit=5"], "has no unit"),
            (&[], &["x=q", "x=q?reply=no"], "has that queue already"),
            (&["q"], &["x=q"], "round in circles"),
        ] {
            let error = plain(queues, workers).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }
}

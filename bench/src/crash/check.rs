//! What is looked at once nobody hands anything in any more and everything runs again.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use reparto_client::{Client, ErrorCode, Fetched, TaskFilter, TaskId};

use super::books::Books;

/// Tasks that are asked for at a time.
const ASKED_AT_ONCE: usize = 500;
/// How long a question waits at the balancer for a task's end.
const WAIT: Duration = Duration::from_secs(5);
/// Without one more task that ends in this time, those that are open do not end. Longer than workers have to come back
/// and name what they hold.
const PATIENCE: Duration = Duration::from_secs(120);
/// Time between two looks at the list of tasks.
const LIST_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// Waits until every accepted task has ended. Those that do not are violations. `false` when told to stop.
pub(super) fn wait_for_ends(books: &Books, client: &Client, stop: impl Fn() -> bool) -> bool {
    let mut last_end = Instant::now();
    loop {
        let open = books.open();
        if open.is_empty() || stop() {
            return open.is_empty();
        }
        let mut ended = 0;
        for some in open.chunks(ASKED_AT_ONCE) {
            ended += fetch(books, client, some, WAIT);
        }
        if ended > 0 {
            last_end = Instant::now();
        } else if last_end.elapsed() > PATIENCE {
            for (number, id) in open {
                let standing =
                    client.describe(id).map_or_else(|error| error.to_string(), |task| format!("{task:?}"));
                let waited = PATIENCE.as_secs();
                let what =
                    format!("it was accepted, and has not ended {waited} s after any other: {standing}");
                books.violate(Some(number), what);
            }
            return true;
        }
    }
}

/// Fetches every accepted task once more.
pub(super) fn fetch_again(books: &Books, client: &Client) {
    for some in books.all_accepted().chunks(ASKED_AT_ONCE) {
        let mut left = some.to_vec();
        // A balancer that has just started, or is lost, leaves some unanswered.
        for _ in 0..20 {
            left.retain(|(number, id)| {
                let Ok(Ok(fetched)) = client.fetch(*id, Duration::ZERO).map(|reply| reply.wait()) else {
                    return true;
                };
                match fetched {
                    Fetched::Ended(outcome) => books.fetched(&books.plan(*number), &outcome),
                    Fetched::NotEnded(standing) => {
                        let what = format!("it had ended, and is {} now", standing.state.name());
                        books.violate(Some(*number), what);
                    }
                }
                false
            });
            if left.is_empty() {
                break;
            }
            std::thread::sleep(LIST_AGAIN_AFTER);
        }
        for (number, _) in left {
            books.violate(Some(number), "it had ended, and cannot be fetched any more");
        }
    }
}

/// Asks for tasks, and gives how many have ended.
fn fetch(books: &Books, client: &Client, tasks: &[(u64, TaskId)], wait: Duration) -> usize {
    let ask = |(number, id): &(u64, TaskId)| Some((*number, client.fetch(*id, wait).ok()?));
    let replies: Vec<_> = tasks.iter().filter_map(ask).collect();
    let mut ended = 0;
    for (number, reply) in replies {
        match reply.wait_timeout(super::clients::PATIENCE) {
            Some(Ok(Fetched::Ended(outcome))) => {
                books.fetched(&books.plan(number), &outcome);
                ended += 1;
            }
            Some(Err(failure)) if failure.code == ErrorCode::NotFound => {
                books.violate(Some(number), "it was accepted, and FETCH does not find it");
            }
            Some(Ok(Fetched::NotEnded(_)) | Err(_)) => {}
            None => books.violate(Some(number), "a FETCH has no answer"),
        }
    }
    ended
}

/// Looks through the list of all tasks: each accepted one stands there once, in the state that was fetched; what nobody
/// was told of has ended too, and is no more than what may have been taken in.
///
/// # Errors
/// The list cannot be had.
pub(super) fn list(books: &Books, client: &Client) -> Result<(), String> {
    let give_up_at = Instant::now() + PATIENCE;
    loop {
        match look_through(books, client) {
            Ok(open) if open.is_empty() => return Ok(()),
            Ok(open) if Instant::now() > give_up_at => {
                for (id, state) in open {
                    books.violate(
                        None,
                        format!("{id}, of which nobody was told, has not ended: it is {state}"),
                    );
                }
                return Ok(());
            }
            Err(error) if Instant::now() > give_up_at => return Err(error),
            Ok(_) | Err(_) => std::thread::sleep(LIST_AGAIN_AFTER),
        }
    }
}

/// Gives those that have not ended.
fn look_through(books: &Books, client: &Client) -> Result<HashMap<TaskId, &'static str>, String> {
    let mut seen = HashSet::new();
    let (mut open, mut wrong, mut unknown) = (HashMap::new(), Vec::new(), 0);
    for task in client.tasks(TaskFilter::new()) {
        let task = task.map_err(|error| error.to_string())?;
        if !seen.insert(task.id) {
            wrong.push((None, format!("{} stands twice in the list", task.id)));
        }
        match books.known(task.id) {
            Some((number, Some(state))) if state != task.state => {
                let what = format!("it was fetched as {}, and listed as {}", state.name(), task.state.name());
                wrong.push((Some(number), what));
            }
            Some(_) => {}
            None => {
                unknown += 1;
                if !task.state.is_ended() {
                    open.insert(task.id, task.state.name());
                }
            }
        }
    }
    if !open.is_empty() {
        return Ok(open);
    }
    for (number, id) in books.all_accepted() {
        if !seen.contains(&id) {
            wrong.push((Some(number), "it was accepted, and is not in the list".to_owned()));
        }
    }
    if unknown > books.in_doubt() {
        let most = books.in_doubt();
        wrong.push((
            None,
            format!("{unknown} tasks are kept that nobody was told of, and at most {most} may be"),
        ));
    }
    for (number, what) in wrong {
        books.violate(number, what);
    }
    Ok(open)
}

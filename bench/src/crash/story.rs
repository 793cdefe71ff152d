//! The history of a task that went wrong: what its clients saw, what workers did with it, and what befell the processes
//! meanwhile, in the order of time.

use std::collections::HashMap;
use std::path::Path;

use super::books::{Books, Violation};

/// Lines of a history.
const MOST_LINES: usize = 60;
/// Faults are told from this long before a task was handed in, in milliseconds.
const BEFORE_MS: u64 = 3_000;
/// Histories that are told.
const MOST_TOLD: usize = 20;

/// Something that a worker did with a task.
#[derive(Debug, Clone)]
pub(super) struct Run {
    unix_ms: u64,
    pub(super) is_begin: bool,
    words: String,
}

/// What workers wrote down, by the tasks' numbers.
pub(super) fn runs(folder: &Path) -> HashMap<u64, Vec<Run>> {
    let mut runs: HashMap<u64, Vec<Run>> = HashMap::new();
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    for path in files.filter(|path| path.extension().is_some_and(|extension| extension == "runs")) {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        for line in text.lines() {
            if let Some((number, run)) = read(line, &name) {
                runs.entry(number).or_default().push(run);
            }
        }
    }
    runs
}

/// Reads `MILLISECONDS WHAT NUMBER ATTEMPT`. The last line of a worker that was killed may be cut.
fn read(line: &str, worker: &str) -> Option<(u64, Run)> {
    let mut words = line.split(' ');
    let unix_ms = words.next()?.parse().ok()?;
    let what = words.next()?;
    let number = words.next()?.parse().ok()?;
    let attempt = words.next()?;
    Some((
        number,
        Run { unix_ms, is_begin: what == "begin", words: format!("{worker}: {what}, attempt {attempt}") },
    ))
}

/// Fills in the histories.
pub(super) fn tell(
    violations: &mut [Violation],
    books: &Books,
    runs: &HashMap<u64, Vec<Run>>,
    faults: &[(u64, String)],
) {
    let began_unix_ms = super::worker::unix_ms().saturating_sub(books.elapsed_ms());
    for violation in violations.iter_mut().take(MOST_TOLD) {
        let Some(number) = violation.number else { continue };
        let mut lines = books.history(number);
        let from = lines.first().map_or(0, |(at, _)| at.saturating_sub(BEFORE_MS));
        let runs = runs.get(&number).into_iter().flatten();
        lines.extend(runs.map(|run| (run.unix_ms.saturating_sub(began_unix_ms), run.words.clone())));
        let until = lines.iter().map(|(at, _)| *at).max().unwrap_or(0);
        lines.extend(faults.iter().filter(|(at, _)| (from..=until).contains(at)).cloned());
        lines.sort_by_key(|(at, _)| *at);
        let cut = lines.len().saturating_sub(MOST_LINES);
        lines.truncate(MOST_LINES);
        violation.history = lines.into_iter().map(|(at, words)| format!("{at:>8} ms  {words}")).collect();
        if cut > 0 {
            violation.history.push(format!("... and {cut} lines more"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_was_cut_is_passed_over() {
        let (number, run) = read("1790000000000 begin 17 2", "worker-1").expect("it is whole");
        assert_eq!((number, run.is_begin, &*run.words), (17, true, "worker-1: begin, attempt 2"));
        assert!(read("179000000", "worker-1").is_none());
    }
}

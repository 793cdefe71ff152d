//! docs/BENCHMARKS.md: a run's tables and chart, put where the page has its place for them.

use std::fmt::Write as _;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::{Lacking, Machine, PeersError, Report, chart};

/// The command whose section this is, as the page's marks name it.
const COMMAND: &str = "peers";

/// What a new page begins with.
const INTRODUCTION: &str = "# Benchmarks\n\n\
    Reparto beside what people use today, on one machine, in one run. Absolute figures hang on the machine and on \
    what else it does; the ratios inside a run are what counts.\n\n";

/// Writes the report's tables into the page, between its marks, and the chart beside the page. A page that is not
/// there, or has no marks, gets them. Gives the files that were written.
///
/// # Errors
/// A file that cannot be read or written, a report without figures.
pub fn write(report: &Report, command: &str, page: &Path) -> Result<Vec<PathBuf>, PeersError> {
    let chart = page.with_file_name("benchmarks-peers.svg");
    chart::write(report, &chart)?;
    put_section(page, COMMAND, &section(report, command))?;
    Ok(vec![page.to_owned(), chart])
}

/// Puts the section of `reparto bench COMMAND` into the page, between its marks. A page that is not there, or has no
/// marks of that command, gets them.
pub(crate) fn put_section(page: &Path, command: &str, section: &str) -> Result<(), PeersError> {
    let old = match fs::read_to_string(page) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => INTRODUCTION.to_owned(),
        Err(error) => return Err(PeersError::file(page, "reading")(error)),
    };
    fs::write(page, replace(&old, command, section)).map_err(PeersError::file(page, "writing"))
}

/// Puts a section between the page's marks, or at its end.
fn replace(page: &str, command: &str, section: &str) -> String {
    let begin = format!(
        "<!-- reparto bench {command}: begin. What stands from here to its end is written by that command. -->"
    );
    let end = format!("<!-- reparto bench {command}: end -->");
    let marked = page.find(&begin).and_then(|from| Some((from, from + page[from..].find(&end)?)));
    match marked {
        Some((from, to)) => format!("{}{begin}\n\n{section}\n{}", &page[..from], &page[to..]),
        None => format!("{}\n\n{begin}\n\n{section}\n{end}\n", page.trim_end()),
    }
}

/// Under which conditions figures came about.
pub(crate) struct Conditions<'a> {
    pub(crate) machine: &'a Machine,
    /// The disk that matters, in a sentence.
    pub(crate) disk: Option<String>,
    pub(crate) versions: &'a [String],
    pub(crate) lacking: &'a [Lacking],
    pub(crate) failures: &'a [String],
}

impl Conditions<'_> {
    /// The list that a section begins with.
    pub(crate) fn list(&self, command: &str) -> String {
        let machine = self.machine;
        let mut lines = vec![
            format!("Command: `{command}`, on {}", machine.date),
            format!(
                "Machine: {} cores of {}; {}; load averages when it began: {}",
                machine.cores, machine.processor, machine.system, machine.load
            ),
        ];
        lines.extend(self.disk.clone());
        lines.push(format!("Servers: {}", self.versions.join(", ")));
        let hint = |it: &Lacking| format!("Not here: {} (Debian: {})", it.program, it.packages);
        lines.extend(self.lacking.iter().map(hint));
        lines.extend(self.failures.iter().map(|failure| format!("Failed: {failure}")));
        lines.iter().map(|line| format!("- {line}\n")).collect()
    }
}

fn section(report: &Report, command: &str) -> String {
    let conditions = Conditions {
        machine: &report.machine,
        disk: None,
        versions: &report.versions,
        lacking: &report.lacking,
        failures: &report.failures,
    };
    let mut text = format!("## Beside other servers\n\n{}", conditions.list(command));
    // Writing to a string does not fail.
    let _ = writeln!(text, "\n{}", how(report));
    let _ = writeln!(text, "![Tasks a second of every server](benchmarks-peers.svg)\n");
    for table in report.tables() {
        let _ = writeln!(text, "{}", table.markdown());
    }
    text
}

/// How the figures came about.
fn how(report: &Report) -> String {
    format!(
        "Clients, server and workers share the machine's cores. The clients and workers are raw: they batch, and do \
         nothing beside what the protocol asks for. Every task is an echo. {} rounds, in each of which every server \
         is started anew and has its turn: {:?} of warm-up, then {:?} measured. A figure is the median over the \
         rounds; a ratio is Reparto's figure over the other's in the same round, the median first, then the least and \
         the most. NATS is driven as its client libraries do it, with a reply subject of its own for each request; gearmand's \
         workers keep several GRAB_JOBs on the way under load. gearmand runs with one thread and with its default, and relays (which pass bytes on and know \
         nothing of tasks) are HAProxy with one thread and nginx: the faster one of two counts.\n",
        report.rounds, report.warm_up, report.duration
    )
}

#[cfg(test)]
mod tests {
    use super::super::process::Folder;
    use super::super::report::tests::report;
    use super::*;

    #[test]
    fn a_page_is_made_and_written_again_without_touching_what_stands_around() {
        let folder = Folder::new().unwrap();
        let page = folder.path().join("BENCHMARKS.md");
        let written = write(&report(), "reparto bench peers", &page).unwrap();
        assert_eq!(written.len(), 2);
        let text = fs::read_to_string(&page).unwrap();
        assert!(text.starts_with("# Benchmarks\n"));
        fs::write(&page, format!("{text}\n## Something else\n").replace("# Benchmarks", "# Speed")).unwrap();
        write(&report(), "reparto bench peers --rounds 9", &page).unwrap();
        let text = fs::read_to_string(&page).unwrap();
        assert!(text.starts_with("# Speed\n") && text.ends_with("## Something else\n"));
        assert!(text.contains("--rounds 9"));
        assert_eq!(text.matches("reparto bench peers: begin").count(), 1);
        assert_eq!(text.matches("### 4 x 128, 64 bytes, closed loop").count(), 1);
    }

    #[test]
    fn the_page_says_what_was_not_here_and_what_failed() {
        let text = section(&report(), "x");
        assert!(text.contains("Not here: haproxy"));
        assert!(text.contains("Failed: gearmand: the server closed the connection"));
    }
}

//! The durable section of docs/BENCHMARKS.md.

use std::fmt::Write as _;
use std::path::Path;

use super::Report;
use crate::peers::error::PeersError;
use crate::peers::page::{Conditions, put_section};
use crate::peers::table::time;

/// The command whose section this is, as the page's marks name it.
const COMMAND: &str = "durable";

/// Writes the report's tables into the page, between its marks. A page that is not there, or has no marks, gets them.
///
/// # Errors
/// A file that cannot be read or written.
pub fn write(report: &Report, command: &str, page: &Path) -> Result<(), PeersError> {
    put_section(page, COMMAND, &section(report, command))
}

fn section(report: &Report, command: &str) -> String {
    let disk = &report.disk;
    let conditions = Conditions {
        machine: &report.machine,
        disk: Some(format!(
            "Disk: {}, where a 4 KiB write with its sync took {} (median of 200, before the run)",
            disk.file_system,
            time(disk.sync_us)
        )),
        versions: &report.versions,
        lacking: &report.lacking,
        failures: &report.failures,
    };
    let title = "## Durable tasks, beside other servers that keep theirs";
    let mut text = format!("{title}\n\n{}", conditions.list(command));
    // Writing to a string does not fail.
    let _ = writeln!(text, "\n{}", how(report));
    for table in report.tables() {
        let _ = writeln!(text, "{}", table.markdown());
    }
    text
}

/// How the figures came about.
fn how(report: &Report) -> String {
    format!(
        "Clients and servers share the machine's cores and its disk. The clients are raw. {} rounds, in each of which \
         every server is started anew, with an empty folder, and has its turn: {:?} of warm-up, then {:?} measured. A \
         figure is the median over the rounds; a ratio is that of the same round, the median first, then the least \
         and the most. What counts as accepted is what the server acknowledges: Reparto with `fsync` and beanstalkd \
         once the disk has it; RabbitMQ once its quorum queue's log is synced; gearmand once SQLite has committed; \
         Reparto with `interval:50ms` and nats-server before the disk has it, which is then synced every 50 ms and \
         every two minutes. Publishes to nats-server use reply subjects again, which suits it better than a new one for each, as its client libraries have it. A whole life is counted from the first task handed in to the moment when the last one's result is \
         durable, with two workers that echo. \
         Through RabbitMQ and PostgreSQL, each task's row is inserted, its message published and confirmed, then \
         claimed, acknowledged, run and recorded; RabbitMQ alone has the same messages published with confirms into \
         one quorum queue and consumed with acknowledgements, by the same broker.\n",
        report.rounds, report.warm_up, report.duration
    )
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;
    use super::*;
    use crate::peers::process::Folder;

    #[test]
    fn the_section_stands_beside_that_of_other_commands() {
        let folder = Folder::new().unwrap();
        let page = folder.path().join("BENCHMARKS.md");
        put_section(&page, "peers", "## Beside other servers\n").unwrap();
        for rounds in [3, 9] {
            write(&report(), &format!("reparto bench durable --rounds {rounds}"), &page).unwrap();
        }
        let text = std::fs::read_to_string(&page).unwrap();
        assert_eq!(text.matches("## Beside other servers").count(), 1);
        assert_eq!(text.matches("## Durable tasks").count(), 1);
        assert!(text.contains("--rounds 9") && !text.contains("--rounds 3"));
        assert!(text.contains("Disk: ext4, where a 4 KiB write with its sync took 123 us"));
        assert!(text.contains("Not here: beanstalkd") && text.contains("Failed: gearmand"));
    }
}

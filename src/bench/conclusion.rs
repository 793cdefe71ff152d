//! How a side-by-side run ends: what was not here and what failed is said, tables or JSON are printed, a page is written.

use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use reparto_bench::peers::{Lacking, Machine, PeersError, Table};

use super::{INTERRUPTED, fail};
use crate::client_side::{EXIT_FAILED, EXIT_OK, EXIT_USAGE, complain};

/// The end of a run that has nothing to report.
pub(super) fn without_report(error: &PeersError) -> ExitCode {
    match error {
        PeersError::Interrupted => fail(INTERRUPTED, "interrupted; nothing was written"),
        PeersError::Options(_) => fail(EXIT_USAGE, &error.to_string()),
        _ => fail(EXIT_FAILED, &error.to_string()),
    }
}

/// Says what the figures were measured on.
pub(super) fn print_machine(machine: &Machine, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{} cores of {}; {}", machine.cores, machine.processor, machine.system)?;
    writeln!(out, "load averages when it began: {}", machine.load)
}

/// What a run has found.
pub(super) struct Conclusion<'a> {
    pub(super) lacking: &'a [Lacking],
    pub(super) failures: &'a [String],
    /// Everything of Reparto gave its figures.
    pub(super) is_whole: bool,
    /// One line for programs, where that is wanted instead of tables.
    pub(super) json: Option<serde_json::Result<String>>,
    pub(super) tables: Vec<Table>,
    /// Where the tables are to be written as well.
    pub(super) page: Option<&'a Path>,
}

impl Conclusion<'_> {
    /// Tells it, with the conditions under which it was found, and finds the exit code.
    pub(super) fn tell(
        self,
        conditions: impl FnOnce(&mut dyn Write) -> io::Result<()>,
        write: impl FnOnce(&Path) -> Result<Vec<PathBuf>, PeersError>,
    ) -> ExitCode {
        self.lacking.iter().for_each(|lacking| complain(&lacking.to_string()));
        self.failures.iter().for_each(|failure| complain(failure));
        let is_text = self.json.is_none();
        let mut code = if self.is_whole { EXIT_OK } else { EXIT_FAILED };
        let mut failed = |sentence: String| {
            complain(&sentence);
            code = EXIT_FAILED;
        };
        match print(self.json, &self.tables, conditions) {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => {
                failed(format!("the report cannot be written to standard output: {error}"));
            }
            _ => {}
        }
        match self.page.map(write) {
            Some(Ok(files)) if is_text => {
                for file in files {
                    // Nobody may be reading there, which is no reason to fail.
                    let _ = writeln!(io::stdout().lock(), "written: {}", file.display());
                }
            }
            Some(Err(error)) => failed(error.to_string()),
            _ => {}
        }
        ExitCode::from(code)
    }
}

fn print(
    json: Option<serde_json::Result<String>>,
    tables: &[Table],
    conditions: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match json {
        Some(json) => writeln!(out, "{}", json?)?,
        None => {
            for table in tables {
                writeln!(out, "{}", table.plain())?;
            }
            conditions(&mut out)?;
        }
    }
    out.flush()
}

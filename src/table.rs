//! Tables for people: columns under their heads, colours where a terminal shows them.

use std::fmt::Write as _;
use std::io::{self, IsTerminal};

use indicatif::HumanCount;

use crate::client_side::printable;

/// How a report is drawn.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Look {
    colours: bool,
    /// Rows of each table at most.
    pub(crate) most_rows: usize,
}

impl Look {
    /// No colours, all rows.
    #[cfg(test)]
    pub(crate) const PLAIN: Look = Look { colours: false, most_rows: usize::MAX };

    /// What suits standard output.
    pub(crate) fn of_stdout() -> Look {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Look { colours: wanted && !dumb && io::stdout().is_terminal(), most_rows: usize::MAX }
    }

    /// The same, with so many rows of each table at most.
    pub(crate) fn with_rows(self, most_rows: usize) -> Look {
        Look { most_rows, ..self }
    }

    pub(crate) fn paint(self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

pub(crate) const BOLD: &str = "1";
const YELLOW: &str = "33";

/// Names are chosen by peers, and must not break the table.
pub(crate) fn one_line(text: &str) -> String {
    printable(text).replace(['\n', '\t'], " ")
}

/// The text, or its beginning and an ellipsis: at most so many characters.
pub(crate) fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most - 1).chain(['…']).collect()
}

/// Draws a table; the columns in `left` stand at their left, the others at their right.
pub(crate) fn table(
    text: &mut String,
    look: Look,
    heads: &[&str],
    left: &[usize],
    rows: Vec<Vec<String>>,
    all: usize,
) {
    let width_of = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([heads[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heads.len()).map(width_of).collect();
    let line = |cells: &[String]| {
        let mut line = String::new();
        for (column, (cell, width)) in cells.iter().zip(&widths).enumerate() {
            let gap = if column == 0 { "" } else { "  " };
            if left.contains(&column) {
                let _ = write!(line, "{gap}{cell:<width$}");
            } else {
                let _ = write!(line, "{gap}{cell:>width$}");
            }
        }
        line.trim_end().to_owned()
    };
    let heads: Vec<String> = heads.iter().map(|head| (*head).to_owned()).collect();
    text.push_str(&look.paint(BOLD, &line(&heads)));
    text.push('\n');
    for row in &rows {
        let drawn = line(row);
        let draining = row.iter().any(|cell| cell == "draining");
        text.push_str(&if draining { look.paint(YELLOW, &drawn) } else { drawn });
        text.push('\n');
    }
    if all > rows.len() {
        let _ = writeln!(text, "and {} more", HumanCount((all - rows.len()) as u64));
    }
}

//! Tables of text, plain for terminals and pipes and as Markdown for pages, and what a report's tables say.

use std::fmt::Write as _;

use indicatif::HumanCount;

use super::report::{ClosedReport, Contestant, Figures, FloodReport, LibraryReport, OpenLoopReport, Ratio};
use super::{Report, Server, bars};

/// A table: its title, a heading for each column, and rows. The first column is to the left, the others to the right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// What it is about.
    pub title: String,
    /// A heading for each column.
    pub headings: Vec<String>,
    /// A cell for each column of each row.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(title: impl Into<String>, headings: &[&str]) -> Table {
        let headings = headings.iter().map(|it| (*it).to_owned()).collect();
        Table { title: title.into(), headings, rows: Vec::new() }
    }

    /// As lines of plain text, the title first.
    pub fn plain(&self) -> String {
        let mut widths: Vec<usize> = self.headings.iter().map(|it| it.chars().count()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = format!("{}\n", self.title);
        for row in std::iter::once(&self.headings).chain(&self.rows) {
            let mut line = String::from(" ");
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                // Writing to a string does not fail.
                let _ = match column {
                    0 => write!(line, " {cell:<width$}"),
                    _ => write!(line, "  {cell:>width$}"),
                };
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }

    /// As Markdown, the title as a heading of the third level.
    pub fn markdown(&self) -> String {
        let line = |cells: &[String]| {
            let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
            format!("| {} |\n", cells.join(" | "))
        };
        let rules: Vec<String> =
            (0..self.headings.len()).map(|at| if at == 0 { "---" } else { "---:" }.to_owned()).collect();
        let rows: String = self.rows.iter().map(|row| line(row)).collect();
        format!("### {}\n\n{}{}{rows}", self.title, line(&self.headings), line(&rules))
    }
}

impl Report {
    /// The tables, in the order of the run, and at last what is wanted of them.
    pub fn tables(&self) -> Vec<Table> {
        let mut tables: Vec<Table> = self.closed.iter().map(closed).collect();
        tables.extend(self.library.as_ref().map(library));
        tables.extend(self.open_loop.iter().map(open_loop));
        if !self.floods.is_empty() {
            tables.push(floods(&self.floods));
        }
        let wanted = bars::table(self);
        if !wanted.rows.is_empty() {
            tables.push(wanted);
        }
        tables
    }
}

const LATENCIES: [&str; 4] = ["tasks/s", "p50", "p99", "p99.9"];

fn closed(report: &ClosedReport) -> Table {
    let headings = [
        "server",
        "tasks/s",
        "p50",
        "p99",
        "p99.9",
        "reparto's tasks/s over",
        "reparto's p50 over",
        "reparto's p99 over",
    ];
    let mut table = Table::new(format!("{}, closed loop", report.scenario), &headings);
    for contestant in &report.contestants {
        let mut row = figures(contestant);
        let reparto = report.best(Server::Reparto).filter(|_| contestant.server != Server::Reparto);
        let ratio =
            |figure: fn(&Figures) -> f64| ratio(reparto.and_then(|it| it.ratio_to(contestant, figure)));
        row.extend([ratio(|it| it.tasks_per_second), ratio(|it| it.p50_us), ratio(|it| it.p99_us)]);
        table.rows.push(row);
    }
    table
}

fn library(report: &LibraryReport) -> Table {
    let headings = [&["server"], LATENCIES.as_slice(), &["tasks/s over nats's"]].concat();
    let mut table = Table::new(format!("{}, Reparto through its own libraries", report.scenario), &headings);
    compare_with_nats(&mut table, &report.contestants, |it| it.tasks_per_second);
    table
}

fn open_loop(report: &OpenLoopReport) -> Table {
    let headings = [&["server"], LATENCIES.as_slice(), &["p99.9 over nats's"]].concat();
    let rate = HumanCount(report.rate.round() as u64);
    let title = format!("Open loop, {rate} tasks/s due, {} of nats's peak", report.share);
    let mut table = Table::new(title, &headings);
    compare_with_nats(&mut table, &report.contestants, |it| it.p999_us);
    table
}

fn compare_with_nats(table: &mut Table, contestants: &[Contestant], figure: fn(&Figures) -> f64) {
    let nats = contestants.iter().find(|it| it.server == Server::Nats);
    for contestant in contestants {
        let mut row = figures(contestant);
        let other = nats.filter(|_| contestant.server != Server::Nats);
        row.push(ratio(other.and_then(|nats| contestant.ratio_to(nats, figure))));
        table.rows.push(row);
    }
}

fn floods(reports: &[FloodReport]) -> Table {
    let headings =
        ["server", "p50 alone", "p99 alone", "p50 flooded", "p99 flooded", "p99 added", "flood tasks/s"];
    let title = "64-byte tasks, 1,000/s due, beside another client's flood of 1,000,000-byte tasks";
    let mut table = Table::new(title, &headings);
    for report in reports {
        let (alone, flooded) = (report.alone.medians(), report.flooded.medians());
        let us =
            |figures: &Option<Figures>, figure: fn(&Figures) -> f64| cell(figures.as_ref().map(figure), time);
        table.rows.push(vec![
            report.alone.name.to_owned(),
            us(&alone, |it| it.p50_us),
            us(&alone, |it| it.p99_us),
            us(&flooded, |it| it.p50_us),
            us(&flooded, |it| it.p99_us),
            cell(report.added_p99_us(), time),
            cell(report.flood.medians().map(|it| it.tasks_per_second), count),
        ]);
    }
    table
}

/// The name and the medians.
fn figures(contestant: &Contestant) -> Vec<String> {
    let medians = contestant.medians();
    let of = |figure: fn(&Figures) -> f64| medians.as_ref().map(figure);
    vec![
        contestant.name.to_owned(),
        cell(of(|it| it.tasks_per_second), count),
        cell(of(|it| it.p50_us), time),
        cell(of(|it| it.p99_us), time),
        cell(of(|it| it.p999_us), time),
    ]
}

pub(crate) fn cell(value: Option<f64>, format: fn(f64) -> String) -> String {
    value.map_or_else(|| "failed".to_owned(), format)
}

pub(crate) fn count(value: f64) -> String {
    HumanCount(value.round() as u64).to_string()
}

/// Microseconds, in the unit that suits.
pub(crate) fn time(us: f64) -> String {
    match us.abs() {
        size if size < 99.95 => format!("{us:.1} us"),
        size if size < 9_999.5 => format!("{us:.0} us"),
        size if size < 999_950.0 => format!("{:.1} ms", us / 1e3),
        _ => format!("{:.2} s", us / 1e6),
    }
}

/// The median ratio, and its range over the rounds; nothing where there is none.
pub(crate) fn ratio(ratio: Option<Ratio>) -> String {
    ratio.map_or_else(String::new, |it| format!("{:.2}x ({:.2} to {:.2})", it.median, it.least, it.most))
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;
    use super::*;

    #[test]
    fn a_plain_table_lines_its_columns_up() {
        let mut table = Table::new("Title", &["server", "tasks/s"]);
        table.rows.push(vec!["reparto".into(), "1,000".into()]);
        table.rows.push(vec!["ñ".into(), "1".into()]);
        assert_eq!(table.plain(), "Title\n  server   tasks/s\n  reparto    1,000\n  ñ              1\n");
    }

    #[test]
    fn a_markdown_table_has_a_rule_and_escapes_bars() {
        let mut table = Table::new("Title", &["a", "b"]);
        table.rows.push(vec!["x|y".into(), "1".into()]);
        assert_eq!(table.markdown(), "### Title\n\n| a | b |\n| --- | ---: |\n| x\\|y | 1 |\n");
    }

    #[test]
    fn times_are_told_in_a_unit_that_suits() {
        assert_eq!(
            [time(7.25), time(123.4), time(12_345.0), time(2_500_000.0)],
            ["7.2 us", "123 us", "12.3 ms", "2.50 s"]
        );
    }

    #[test]
    fn every_part_of_a_report_has_its_table_and_every_row_a_cell_for_each_column() {
        let tables = report().tables();
        assert_eq!(tables.len(), 5);
        for table in &tables {
            assert!(!table.rows.is_empty(), "{}", table.title);
            for row in &table.rows {
                assert_eq!(row.len(), table.headings.len(), "{}", table.title);
            }
        }
        let closed = tables[0].plain();
        assert!(closed.contains("6.00x (5.00 to 9.00)"), "{closed}");
    }
}

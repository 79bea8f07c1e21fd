//! Tables for the terminal.

/// Between two columns.
const GAP: &str = "  ";
/// A cell without a value.
pub(crate) const NONE: &str = "-";

/// A table that is as wide as what is in it. Columns without any value are left out.
#[derive(Debug)]
pub(crate) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

#[derive(Clone, Copy, Debug)]
struct Column {
    title: &'static str,
    align: Align,
}

/// Where a cell stands in its column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

// === impl Table ===

impl Table {
    /// A table with these columns and no rows.
    pub(crate) fn new(columns: &[(&'static str, Align)]) -> Self {
        let columns = columns.iter().map(|&(title, align)| Column { title, align }).collect();
        Self { columns, rows: Vec::new() }
    }

    /// Adds a row, one cell for each column.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.columns.len(), "{cells:?}");
        self.rows.push(cells);
    }

    /// The table's lines.
    pub(crate) fn render(&self) -> String {
        let shown: Vec<usize> = (0..self.columns.len())
            .filter(|&column| {
                self.rows.is_empty() || self.rows.iter().any(|row| !row[column].eq(NONE))
            })
            .collect();
        let titles: Vec<&str> = self.columns.iter().map(|column| column.title).collect();
        let mut lines = vec![self.line(&shown, &titles)];
        for row in &self.rows {
            let cells: Vec<&str> = row.iter().map(String::as_str).collect();
            lines.push(self.line(&shown, &cells));
        }
        lines.join("\n")
    }

    fn line(&self, shown: &[usize], cells: &[&str]) -> String {
        let padded = shown.iter().map(|&column| {
            let width = self.width(column);
            match self.columns[column].align {
                Align::Left => format!("{:<width$}", cells[column]),
                Align::Right => format!("{:>width$}", cells[column]),
            }
        });
        padded.collect::<Vec<_>>().join(GAP).trim_end().to_owned()
    }

    fn width(&self, column: usize) -> usize {
        let cells = self.rows.iter().map(|row| row[column].chars().count());
        cells.chain([self.columns[column].title.len()]).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::{Align, NONE, Table};

    #[test]
    fn columns_fit_and_empty_ones_are_left_out() {
        let mut table =
            Table::new(&[("ID", Align::Right), ("EMPTY", Align::Left), ("NAME", Align::Left)]);
        assert_eq!(table.render(), "ID  EMPTY  NAME");
        table.row(vec!["7".into(), NONE.into(), "ümlaut".into()]);
        table.row(vec!["1234".into(), NONE.into(), NONE.into()]);
        assert_eq!(table.render(), "  ID  NAME\n   7  ümlaut\n1234  -");
    }
}

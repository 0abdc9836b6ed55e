//! A grid of text on standard output: aligned, with tabs, or as CSV.

use std::io::{self, Write};

/// Names, and rows of as many texts.
#[derive(Debug, PartialEq)]
pub struct Grid {
    pub names: Vec<String>,
    /// Columns of numbers stand to the right.
    pub numbers: Vec<bool>,
    pub rows: Vec<Vec<String>>,
    /// The first column of the raw form.
    pub raw_from: usize,
}

/// One line of a cell: a table has a line for each row.
fn flat(text: &str) -> String {
    text.trim_end().replace('\n', "\\n").replace('\r', "\\r").replace('\t', "\\t")
}

impl Grid {
    pub fn table(&self, out: &mut impl Write) -> io::Result<()> {
        let rows: Vec<Vec<String>> = self.rows.iter().map(|r| r.iter().map(|c| flat(c)).collect()).collect();
        let wide = |i: usize| {
            let cells = rows.iter().filter_map(|r| r.get(i)).chain([&self.names[i]]);
            cells.map(|c| c.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.names.len()).map(wide).collect();
        self.line(&self.names, &widths, out)?;
        let rule: Vec<String> = widths.iter().map(|w| "-".repeat(*w)).collect();
        self.line(&rule, &widths, out)?;
        rows.iter().try_for_each(|r| self.line(r, &widths, out))?;
        let n = self.rows.len();
        writeln!(out, "({n} row{})", if n == 1 { "" } else { "s" })
    }

    fn line(&self, cells: &[String], widths: &[usize], out: &mut impl Write) -> io::Result<()> {
        let mut line = String::new();
        for (i, (cell, width)) in cells.iter().zip(widths).enumerate() {
            let gap = " ".repeat(width.saturating_sub(cell.chars().count()));
            let right = self.numbers.get(i).copied().unwrap_or(false);
            line.push_str(if i > 0 { "  " } else { "" });
            line.push_str(if right { &gap } else { "" });
            line.push_str(cell);
            line.push_str(if right { "" } else { &gap });
        }
        writeln!(out, "{}", line.trim_end())
    }

    pub fn raw(&self, out: &mut impl Write) -> io::Result<()> {
        for row in &self.rows {
            let cells = row.get(self.raw_from..).unwrap_or(&[]);
            writeln!(out, "{}", cells.join("\t"))?;
        }
        Ok(())
    }

    pub fn csv(&self, out: &mut impl Write) -> io::Result<()> {
        let field = |text: &String| {
            if text.contains(['"', ',', '\n', '\r']) {
                format!("\"{}\"", text.replace('"', "\"\""))
            } else {
                text.clone()
            }
        };
        for row in [&self.names].into_iter().chain(&self.rows) {
            let fields: Vec<String> = row.iter().map(field).collect();
            writeln!(out, "{}", fields.join(","))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(print: impl Fn(&Grid, &mut Vec<u8>) -> io::Result<()>) -> String {
        let grid = Grid {
            names: vec!["app".into(), "n".into()],
            numbers: vec![false, true],
            rows: vec![vec!["shop,é".into(), "7".into()], vec!["a\nb".into(), "12".into()]],
            raw_from: 0,
        };
        let mut out = Vec::new();
        print(&grid, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn columns_are_aligned_and_rows_take_a_line() {
        assert_eq!(shown(|g, o| g.table(o)), "app      n\n------  --\nshop,é   7\na\\nb    12\n(2 rows)\n");
        assert_eq!(shown(|g, o| g.raw(o)), "shop,é\t7\na\nb\t12\n");
        assert_eq!(shown(|g, o| g.csv(o)), "app,n\n\"shop,é\",7\n\"a\nb\",12\n");
    }
}

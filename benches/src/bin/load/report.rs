//! Figures beside their goals.

use std::fmt;

/// What was measured, in order.
#[derive(Debug, Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    name: String,
    unit: &'static str,
    value: f64,
    goal: Goal,
}

#[derive(Clone, Copy, Debug)]
enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

impl Report {
    /// A figure that should be small.
    pub(crate) fn at_most(&mut self, name: &str, unit: &'static str, value: f64, goal: f64) {
        self.rows.push(Row { name: name.to_owned(), unit, value, goal: Goal::AtMost(goal) });
    }

    /// A figure that should be large.
    pub(crate) fn at_least(&mut self, name: &str, unit: &'static str, value: f64, goal: f64) {
        self.rows.push(Row { name: name.to_owned(), unit, value, goal: Goal::AtLeast(goal) });
    }

    /// `name,value,unit,goal,met` with a header line.
    pub(crate) fn csv(&self) -> String {
        let mut text = String::from("name,value,unit,goal,met\n");
        for row in &self.rows {
            let Row { name, unit, value, goal } = row;
            text.push_str(&format!(
                "\"{name}\",{value:.3},{unit},{goal},{}\n",
                goal.is_met(*value)
            ));
        }
        text
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| {:30} | {:>10} | {:6} | {:>8} | met |", "figure", "value", "unit", "goal")?;
        write!(f, "|{:-<32}|{:->11}:|{:-<8}|{:->9}:|-----|", "", "", "", "")?;
        for row in &self.rows {
            let Row { name, unit, value, goal } = row;
            let met = if goal.is_met(*value) { "yes" } else { "NO" };
            write!(f, "\n| {name:30} | {value:>10.2} | {unit:6} | {goal:>8} | {met:3} |")?;
        }
        Ok(())
    }
}

impl Goal {
    fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtMost(goal) => value <= goal,
            Self::AtLeast(goal) => value >= goal,
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::AtMost(goal) => format!("< {goal}"),
            Self::AtLeast(goal) => format!("> {goal}"),
        };
        f.pad(&text)
    }
}

//! What a scenario found: figures with names for programs and words for people, and what should have been otherwise.

use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Map, Value};

/// The figures of one lab, in the order in which they were added.
#[derive(Clone, Debug, Default)]
pub struct Report {
    figures: Vec<(&'static str, String, Value)>,
    failures: Vec<String>,
}

impl Report {
    /// Adds a figure. Keys are never renamed. One without words is for programs alone.
    pub fn figure(&mut self, key: &'static str, words: &str, value: impl Into<Value>) {
        self.figures.push((key, words.to_owned(), value.into()));
    }

    /// Notes what is wrong, unless it is right.
    pub fn must(&mut self, right: bool, otherwise: impl Into<String>) {
        if !right {
            self.failures.push(otherwise.into());
        }
    }

    /// What is wrong.
    pub fn failures(&self) -> &[String] {
        &self.failures
    }

    /// One object for programs.
    pub fn json(&self) -> Value {
        let figures = self
            .figures
            .iter()
            .map(|(key, _, value)| ((*key).to_owned(), value.clone()));
        let mut object: Map<String, Value> = figures.collect();
        object.insert("ok".into(), self.failures.is_empty().into());
        Value::Object(object)
    }

    /// A table for people.
    pub fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_preset(presets::UTF8_FULL_CONDENSED);
        for (_, words, value) in self.figures.iter().filter(|(_, words, _)| !words.is_empty()) {
            table.add_row([words.clone(), text(value)]);
        }
        if let Some(values) = table.column_mut(1) {
            values.set_cell_alignment(CellAlignment::Right);
        }
        table
    }
}

/// A figure in ms, to a tenth.
pub fn ms(time: std::time::Duration) -> f64 {
    (time.as_secs_f64() * 10_000.0).round() / 10.0
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".into(),
        Value::Array(values) => values.iter().map(text).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_makes_the_object_not_ok_and_keeps_its_figures() {
        let mut report = Report::default();
        report.figure("lost_ops", "Acknowledged writes lost", 3);
        report.must(true, "never said");
        assert_eq!(report.json()["ok"], true);
        report.must(false, "3 acknowledged writes are lost");
        assert_eq!(report.json()["ok"], false);
        assert_eq!(report.json()["lost_ops"], 3);
        assert_eq!(report.failures(), ["3 acknowledged writes are lost"]);
    }
}

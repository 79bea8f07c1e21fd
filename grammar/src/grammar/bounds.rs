//! Bounds of numbers that llguidance would take and not hold, found by generating from them.

use serde_json::{Map, Value};

use crate::Error;

/// Bounds beyond this are rounded on their way into a grammar.
const EXACT_MAX: f64 = 9_007_199_254_740_992.0;

const BOUNDS: [&str; 4] = ["minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"];

/// Refuses a schema with such bounds anywhere in it.
pub(super) fn check(schema: &Value) -> Result<(), Error> {
    match schema {
        Value::Array(items) => items.iter().try_for_each(check),
        Value::Object(fields) => {
            check_exact(fields)?;
            check_open(fields, "exclusiveMinimum", ["maximum", "exclusiveMaximum"])?;
            check_open(fields, "exclusiveMaximum", ["minimum", "exclusiveMinimum"])?;
            fields.values().try_for_each(check)
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Ok(()),
    }
}

fn check_exact(fields: &Map<String, Value>) -> Result<(), Error> {
    for name in BOUNDS {
        if let Some(bound) = number(fields, name)
            && bound.abs() >= EXACT_MAX
        {
            let value = &fields[name];
            return Err(Error::Refused(format!(
                "{name} {value} is beyond 2^53, where numbers are not exact"
            )));
        }
    }
    Ok(())
}

/// A whole number as an open end, with the other end before the next whole number: it would be let through.
fn check_open(fields: &Map<String, Value>, open: &str, others: [&str; 2]) -> Result<(), Error> {
    let Some(bound) = number(fields, open).filter(|bound| bound.fract() == 0.0) else {
        return Ok(());
    };
    let is_close =
        |other: &&&str| number(fields, other).is_some_and(|other| (other - bound).abs() < 1.0);
    match others.iter().find(is_close) {
        None => Ok(()),
        Some(other) => Err(Error::Refused(format!(
            "{open} {} with {other} {} would let {open} itself through; shift it a little",
            fields[open], fields[*other]
        ))),
    }
}

fn number(fields: &Map<String, Value>, name: &str) -> Option<f64> {
    fields.get(name).and_then(Value::as_f64)
}

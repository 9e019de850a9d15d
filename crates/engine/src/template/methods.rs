//! Methods of Python's types.

use minijinja::{Error, State, Value, value::from_args};
use minijinja_contrib::pycompat::unknown_method_callback;

/// Calls the method `name` of `value`: ours where minijinja's set lacks it or differs.
pub(super) fn call(
    state: &mut State<'_, '_>,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    match (value.as_str(), name) {
        (Some(text), "title") => {
            let () = from_args(args)?;
            Ok(title(text).into())
        }
        (Some(text), "isspace") => {
            let () = from_args(args)?;
            Ok((!text.is_empty() && text.chars().all(char::is_whitespace)).into())
        }
        (Some(text), "removeprefix") => {
            let (prefix,): (&str,) = from_args(args)?;
            Ok(text.strip_prefix(prefix).unwrap_or(text).into())
        }
        (Some(text), "removesuffix") => {
            let (suffix,): (&str,) = from_args(args)?;
            Ok(text.strip_suffix(suffix).unwrap_or(text).into())
        }
        _ => unknown_method_callback(state, value, name, args),
    }
}

/// Every run of letters begins with a capital and goes on in small letters.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut within = false;
    for c in text.chars() {
        if !c.is_alphabetic() {
            out.push(c);
        } else if within {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
        within = c.is_alphabetic();
    }
    out
}

//! Methods of Python's types.

use minijinja::{
    Error, ErrorKind, State, Value,
    formatting::{FormatStyle, format},
    value::{Kwargs, Tuple, ValueKind},
};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::{
    python,
    strings::{self, Window},
};

/// Calls the method `name` of `value`: ours where minijinja's set lacks it or differs.
pub(super) fn call(
    state: &mut State<'_, '_>,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let own = match (value.as_str(), value.kind()) {
        (Some(text), _) => string(text, name, args),
        (None, ValueKind::Seq) => sequence(value, name, args),
        (None, ValueKind::Map) if name == "copy" => {
            let [] = slots(args, [])?;
            Ok(value.clone())
        }
        (None, ValueKind::Number) => number(value, name, args),
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    };
    match own {
        Err(error) if error.kind() == ErrorKind::UnknownMethod => {
            unknown_method_callback(state, value, name, args)
        }
        known => known,
    }
}

/// The arguments by the names of the parameters, however they were given; absent is none, and so
/// is `None`.
pub(super) fn slots<const N: usize>(
    args: &[Value],
    names: [&str; N],
) -> Result<[Option<Value>; N], Error> {
    let mut slots = [const { None }; N];
    let (positional, named) = match args.split_last() {
        Some((last, rest)) if last.is_kwargs() => (rest, Some(Kwargs::try_from(last.clone())?)),
        _ => (args, None),
    };
    if positional.len() > N {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    for (slot, value) in slots.iter_mut().zip(positional) {
        *slot = Some(value.clone());
    }
    if let Some(named) = named {
        for (slot, name) in slots.iter_mut().zip(names) {
            if named.has(name) {
                *slot = Some(named.get(name)?);
            }
        }
        named.assert_all_used()?;
    }
    Ok(slots.map(|slot| slot.filter(|value| !value.is_none())))
}

fn invalid(why: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, why)
}

fn text_of(slot: Option<&Value>) -> Result<&str, Error> {
    let value = slot.ok_or_else(|| Error::from(ErrorKind::MissingArgument))?;
    value
        .as_str()
        .ok_or_else(|| invalid("an argument must be a string"))
}

fn optional_text(slot: Option<&Value>) -> Result<Option<&str>, Error> {
    slot.map(|value| text_of(Some(value))).transpose()
}

fn integer(slot: Option<&Value>) -> Result<Option<i64>, Error> {
    slot.map(|value| i64::try_from(value.clone())).transpose()
}

/// A count of which negative means all.
fn count(slot: Option<&Value>) -> Result<usize, Error> {
    let count = integer(slot)?.unwrap_or(-1);
    Ok(usize::try_from(count).unwrap_or(usize::MAX))
}

fn list<T: Into<Value>>(parts: impl IntoIterator<Item = T>) -> Value {
    Value::from(parts.into_iter().map(Into::into).collect::<Vec<Value>>())
}

#[allow(clippy::too_many_lines, reason = "a table of methods")]
fn string(text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let plain = |result: Value| -> Result<Value, Error> {
        let [] = slots(args, [])?;
        Ok(result)
    };
    match name {
        "upper" => plain(text.to_uppercase().into()),
        "lower" => plain(text.to_lowercase().into()),
        "casefold" => plain(text.to_lowercase().replace('ß', "ss").into()),
        "swapcase" => plain(strings::swapcase(text).into()),
        "title" => plain(strings::title(text).into()),
        "capitalize" => plain(strings::capitalize(text).into()),
        "isspace" => plain(strings::all(text, strings::is_space).into()),
        "isalpha" => plain(strings::all(text, char::is_alphabetic).into()),
        "isalnum" => plain(strings::all(text, char::is_alphanumeric).into()),
        "isnumeric" => plain(strings::all(text, char::is_numeric).into()),
        "isdigit" => plain(strings::all(text, strings::is_digit).into()),
        "isdecimal" => plain(strings::all(text, strings::is_decimal).into()),
        "isascii" => plain(text.is_ascii().into()),
        "islower" => plain(strings::cased(text, char::is_lowercase, char::is_uppercase).into()),
        "isupper" => plain(strings::cased(text, char::is_uppercase, char::is_lowercase).into()),
        "istitle" => plain((strings::title(text) == text && strings::is_cased(text)).into()),
        "isidentifier" => plain(strings::is_identifier(text).into()),
        "strip" | "lstrip" | "rstrip" => {
            let [chars] = slots(args, ["chars"])?;
            let chars = optional_text(chars.as_ref())?;
            let strips = |c: char| chars.map_or(strings::is_space(c), |chars| chars.contains(c));
            Ok(Value::from(match name {
                "strip" => text.trim_matches(strips),
                "lstrip" => text.trim_start_matches(strips),
                _ => text.trim_end_matches(strips),
            }))
        }
        "split" | "rsplit" => {
            let [separator, most] = slots(args, ["sep", "maxsplit"])?;
            let most = count(most.as_ref())?;
            let parts = match (optional_text(separator.as_ref())?, name) {
                (Some(""), _) => return Err(invalid("empty separator")),
                (None, "split") => strings::words(text, most),
                (None, _) => strings::words_from_end(text, most),
                (Some(separator), "split") => {
                    text.splitn(most.saturating_add(1), separator).collect()
                }
                (Some(separator), _) => {
                    let mut parts: Vec<&str> =
                        text.rsplitn(most.saturating_add(1), separator).collect();
                    parts.reverse();
                    parts
                }
            };
            Ok(list(parts))
        }
        "splitlines" => {
            let [keep] = slots(args, ["keepends"])?;
            Ok(list(strings::lines(
                text,
                keep.is_some_and(|v| v.is_true()),
            )))
        }
        "partition" | "rpartition" => {
            let [separator] = slots(args, ["sep"])?;
            let separator = text_of(separator.as_ref())?;
            if separator.is_empty() {
                return Err(invalid("empty separator"));
            }
            let parts = match name {
                "partition" => match text.split_once(separator) {
                    Some((before, after)) => [before, separator, after],
                    None => [text, "", ""],
                },
                _ => match text.rsplit_once(separator) {
                    Some((before, after)) => [before, separator, after],
                    None => ["", "", text],
                },
            };
            Ok(Value::from_object(Tuple::from(parts.map(Value::from))))
        }
        "find" | "rfind" | "index" | "rindex" | "count" => {
            let [what, start, end] = slots(args, ["sub", "start", "end"])?;
            let what = text_of(what.as_ref())?;
            let window = Window::of(text, integer(start.as_ref())?, integer(end.as_ref())?);
            if name == "count" {
                let count = window.map_or(0, |window| window.text.matches(what).count());
                return Ok(count.into());
            }
            let from_end = name.starts_with('r');
            match window.and_then(|window| window.find(what, from_end)) {
                Some(at) => Ok(at.into()),
                None if name.ends_with("find") => Ok((-1).into()),
                None => Err(invalid("substring not found")),
            }
        }
        "startswith" | "endswith" => {
            let [what, start, end] = slots(args, ["prefix", "start", "end"])?;
            let what = what.ok_or_else(|| Error::from(ErrorKind::MissingArgument))?;
            let window = Window::of(text, integer(start.as_ref())?, integer(end.as_ref())?);
            let fits = |what: &Value| -> Result<bool, Error> {
                let what = text_of(Some(what))?;
                Ok(window.as_ref().is_some_and(|window| match name {
                    "startswith" => window.text.starts_with(what),
                    _ => window.text.ends_with(what),
                }))
            };
            if !what.is_tuple() {
                return Ok(fits(&what)?.into());
            }
            for one in what.try_iter()? {
                if fits(&one)? {
                    return Ok(true.into());
                }
            }
            Ok(false.into())
        }
        "replace" => {
            let [old, new, most] = slots(args, ["old", "new", "count"])?;
            let (old, new) = (text_of(old.as_ref())?, text_of(new.as_ref())?);
            Ok(text.replacen(old, new, count(most.as_ref())?).into())
        }
        "removeprefix" => {
            let [prefix] = slots(args, ["prefix"])?;
            let rest = text.strip_prefix(text_of(prefix.as_ref())?);
            Ok(rest.unwrap_or(text).into())
        }
        "removesuffix" => {
            let [suffix] = slots(args, ["suffix"])?;
            let rest = text.strip_suffix(text_of(suffix.as_ref())?);
            Ok(rest.unwrap_or(text).into())
        }
        "zfill" => {
            let [width] = slots(args, ["width"])?;
            Ok(strings::zfill(text, width_of(width.as_ref())?).into())
        }
        "ljust" | "rjust" | "center" => {
            let [width, fill] = slots(args, ["width", "fillchar"])?;
            let mut fill = optional_text(fill.as_ref())?.unwrap_or(" ").chars();
            let (Some(fill), None) = (fill.next(), fill.next()) else {
                return Err(invalid(
                    "the fill character must be exactly one character long",
                ));
            };
            let width = width_of(width.as_ref())?;
            Ok(strings::pad(text, width, fill, name).into())
        }
        "expandtabs" => {
            let [size] = slots(args, ["tabsize"])?;
            let size = size.map_or(Ok(8), |size| width_of(Some(&size)))?;
            Ok(strings::expandtabs(text, size).into())
        }
        "join" => {
            let [values] = slots(args, ["iterable"])?;
            let values = values.ok_or_else(|| Error::from(ErrorKind::MissingArgument))?;
            let parts: Vec<Value> = values.try_iter()?.collect();
            let parts = parts.iter().map(|part| text_of(Some(part)));
            Ok(parts.collect::<Result<Vec<_>, _>>()?.join(text).into())
        }
        "format" => {
            strings::check_widths(text)?;
            Ok(format(FormatStyle::StrFormat, text, &shown(args)?)?.into())
        }
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

/// A width, which is bounded: what is padded is not paid for otherwise.
fn width_of(slot: Option<&Value>) -> Result<usize, Error> {
    let width = integer(slot)?.ok_or_else(|| Error::from(ErrorKind::MissingArgument))?;
    if width > strings::MAX_WIDTH {
        return Err(invalid("a width is too large"));
    }
    Ok(usize::try_from(width).unwrap_or(0))
}

/// The filter `format` and the operator `%` of a string.
pub(super) fn percent(text: &str, args: &[Value]) -> Result<Value, Error> {
    strings::check_widths(text)?;
    let args = match args {
        [one] if one.is_tuple() => one.try_iter()?.collect(),
        _ => args.to_vec(),
    };
    Ok(format(FormatStyle::Printf, text, &shown(&args)?)?.into())
}

/// The same values, those that Python prints otherwise than minijinja as texts.
fn shown(args: &[Value]) -> Result<Vec<Value>, Error> {
    let show = |value: Value| -> Result<Value, Error> {
        match value.kind() {
            ValueKind::String | ValueKind::Number => Ok(value),
            _ => python::text(&value).map(Value::from),
        }
    };
    let mut values = Vec::with_capacity(args.len());
    for value in args {
        if value.is_kwargs() {
            let named = Kwargs::try_from(value.clone())?;
            let pairs = named
                .args()
                .map(|name| Ok((name.to_owned(), show(named.get(name)?)?)));
            let pairs = pairs.collect::<Result<Vec<_>, Error>>()?;
            values.push(pairs.into_iter().collect::<Kwargs>().into());
        } else {
            values.push(show(value.clone())?);
        }
    }
    Ok(values)
}

fn sequence(value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    match name {
        "copy" => {
            let [] = slots(args, [])?;
            Ok(value.clone())
        }
        "index" => {
            let [what, start, end] = slots(args, ["value", "start", "end"])?;
            let what = what.unwrap_or_default();
            let all: Vec<Value> = value.try_iter()?.collect();
            let bound = |at: i64| strings::bound(at, all.len());
            let start = integer(start.as_ref())?.map_or(0, bound);
            let end = integer(end.as_ref())?.map_or(all.len(), bound);
            let found = (start..end).find(|at| all[*at] == what);
            found
                .map(Value::from)
                .ok_or_else(|| invalid("the value is not in the list"))
        }
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn number(value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let [] = slots(args, [])?;
    match name {
        "is_integer" => {
            let number = f64::try_from(value.clone())?;
            Ok((number.fract() == 0.0).into())
        }
        "bit_length" if value.is_integer() => {
            let number = i64::try_from(value.clone())?.unsigned_abs();
            Ok((u64::BITS - number.leading_zeros()).into())
        }
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

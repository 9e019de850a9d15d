//! Reads the GGUF format, version 2 and 3.
//!
//! <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};

use super::dequant::Kind;

/// A file in memory, taken apart.
pub(super) struct Gguf<'a> {
    fields: HashMap<&'a str, Value<'a>>,
    /// In the order of the file.
    pub(super) tensors: Vec<Tensor<'a>>,
}

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value<'a> {
    /// Any integer.
    Integer(i64),
    /// Any floating point number.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// A text.
    Text(&'a str),
    /// A list.
    List(Vec<Value<'a>>),
}

/// A tensor in its stored form.
pub(super) struct Tensor<'a> {
    /// Name, for example `blk.0.attn_q.weight`.
    pub(super) name: &'a str,
    /// Sizes, the outermost first (the file has them the other way round).
    pub(super) shape: Vec<usize>,
    /// How its numbers are stored.
    pub(super) kind: Kind,
    /// The stored bytes.
    pub(super) data: &'a [u8],
}

impl<'a> Gguf<'a> {
    /// Takes `bytes` apart. Nothing is copied.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self> {
        let mut reader = Reader { bytes, at: 0 };
        ensure!(reader.take(4)? == b"GGUF", "this is no GGUF file");
        let version = reader.u32()?;
        ensure!(
            (2..=3).contains(&version),
            "GGUF version {version} is not read"
        );
        let tensor_count = reader.u64()?;
        let field_count = reader.u64()?;
        let mut fields = HashMap::new();
        for _ in 0..field_count {
            let name = reader.text()?;
            let kind = reader.u32()?;
            let value = reader
                .value(kind, 0)
                .with_context(|| format!("field {name}"))?;
            fields.insert(name, value);
        }
        let mut found = Vec::new();
        for _ in 0..tensor_count {
            let name = reader.text()?;
            let dimensions = reader.u32()?;
            ensure!(dimensions <= 4, "tensor {name} has {dimensions} dimensions");
            let mut shape = (0..dimensions)
                .map(|_| Ok(reader.u64()? as usize))
                .collect::<Result<Vec<_>>>()?;
            shape.reverse();
            let kind = Kind::from_code(reader.u32()?).with_context(|| format!("tensor {name}"))?;
            found.push((name, shape, kind, reader.u64()? as usize));
        }
        let align = match fields.get("general.alignment") {
            Some(Value::Integer(align)) if *align > 0 => *align as usize,
            _ => 32,
        };
        let start = reader.at.next_multiple_of(align);
        let mut tensors = Vec::with_capacity(found.len());
        for (name, shape, kind, offset) in found {
            let count = shape
                .iter()
                .try_fold(1usize, |product, size| product.checked_mul(*size))
                .with_context(|| format!("tensor {name} is too large"))?;
            let length = kind
                .byte_length(count)
                .with_context(|| format!("tensor {name}"))?;
            let data = start
                .checked_add(offset)
                .and_then(|from| bytes.get(from..from.checked_add(length)?))
                .with_context(|| format!("tensor {name} lies outside of the file"))?;
            tensors.push(Tensor {
                name,
                shape,
                kind,
                data,
            });
        }
        Ok(Self { fields, tensors })
    }

    /// A field, if it is there.
    pub(super) fn get(&self, name: &str) -> Option<&Value<'a>> {
        self.fields.get(name)
    }

    /// An integer field.
    pub(super) fn integer(&self, name: &str) -> Result<i64> {
        match self.get(name) {
            Some(Value::Integer(value)) => Ok(*value),
            other => bail!("field {name} is no integer: {other:?}"),
        }
    }

    /// A number.
    pub(super) fn float(&self, name: &str) -> Result<f64> {
        match self.get(name) {
            Some(Value::Float(value)) => Ok(*value),
            Some(Value::Integer(value)) => Ok(*value as f64),
            other => bail!("field {name} is no number: {other:?}"),
        }
    }

    /// A text.
    pub(super) fn text(&self, name: &str) -> Result<&'a str> {
        match self.get(name) {
            Some(Value::Text(value)) => Ok(value),
            other => bail!("field {name} is no text: {other:?}"),
        }
    }

    /// A list of texts.
    pub(super) fn texts(&self, name: &str) -> Result<Vec<&'a str>> {
        self.list(name)?
            .iter()
            .map(|value| match value {
                Value::Text(text) => Ok(*text),
                other => bail!("field {name} holds {other:?}"),
            })
            .collect()
    }

    /// A list of integers.
    pub(super) fn integers(&self, name: &str) -> Result<Vec<i64>> {
        self.list(name)?
            .iter()
            .map(|value| match value {
                Value::Integer(number) => Ok(*number),
                other => bail!("field {name} holds {other:?}"),
            })
            .collect()
    }

    /// A list of numbers.
    pub(super) fn floats(&self, name: &str) -> Result<Vec<f64>> {
        self.list(name)?
            .iter()
            .map(|value| match value {
                Value::Float(number) => Ok(*number),
                other => bail!("field {name} holds {other:?}"),
            })
            .collect()
    }

    fn list(&self, name: &str) -> Result<&[Value<'a>]> {
        match self.get(name) {
            Some(Value::List(values)) => Ok(values),
            other => bail!("field {name} is no list: {other:?}"),
        }
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let taken = self
            .at
            .checked_add(count)
            .and_then(|end| self.bytes.get(self.at..end))
            .context("the file ends too early")?;
        self.at += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.take(N)?.try_into().context("the file ends too early")
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn text(&mut self) -> Result<&'a str> {
        let length = self.u64()? as usize;
        std::str::from_utf8(self.take(length)?).context("a text is not UTF-8")
    }

    fn value(&mut self, kind: u32, depth: u32) -> Result<Value<'a>> {
        Ok(match kind {
            0 => Value::Integer(i64::from(self.array::<1>()?[0])),
            1 => Value::Integer(i64::from(i8::from_le_bytes(self.array()?))),
            2 => Value::Integer(i64::from(u16::from_le_bytes(self.array()?))),
            3 => Value::Integer(i64::from(i16::from_le_bytes(self.array()?))),
            4 => Value::Integer(i64::from(self.u32()?)),
            5 => Value::Integer(i64::from(i32::from_le_bytes(self.array()?))),
            6 => Value::Float(f64::from(f32::from_le_bytes(self.array()?))),
            7 => Value::Bool(self.array::<1>()?[0] != 0),
            8 => Value::Text(self.text()?),
            9 => {
                ensure!(depth < 4, "lists are nested too deeply");
                let kind = self.u32()?;
                let count = self.u64()?;
                // No allocation ahead of what the file really holds.
                Value::List(
                    (0..count)
                        .map(|_| self.value(kind, depth + 1))
                        .collect::<Result<_>>()?,
                )
            }
            10 => Value::Integer(i64::try_from(self.u64()?)?),
            11 => Value::Integer(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            other => bail!("values of type {other} are not known"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(out: &mut Vec<u8>, text: &str) {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    }

    fn sample() -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend(1u64.to_le_bytes());
        out.extend(3u64.to_le_bytes());
        text(&mut out, "llama.block_count");
        out.extend(4u32.to_le_bytes());
        out.extend(30u32.to_le_bytes());
        text(&mut out, "tokens");
        out.extend(9u32.to_le_bytes());
        out.extend(8u32.to_le_bytes());
        out.extend(2u64.to_le_bytes());
        text(&mut out, "a");
        text(&mut out, "Ġb");
        text(&mut out, "eps");
        out.extend(6u32.to_le_bytes());
        out.extend(1e-5f32.to_le_bytes());
        text(&mut out, "w");
        out.extend(2u32.to_le_bytes());
        out.extend(3u64.to_le_bytes());
        out.extend(2u64.to_le_bytes());
        out.extend(0u32.to_le_bytes());
        out.extend(0u64.to_le_bytes());
        out.resize(out.len().next_multiple_of(32), 0);
        for number in 0..6u8 {
            out.extend(f32::from(number).to_le_bytes());
        }
        out
    }

    #[test]
    fn fields_and_tensors_are_found() {
        let bytes = sample();
        let gguf = Gguf::parse(&bytes).unwrap();
        assert_eq!(gguf.integer("llama.block_count").unwrap(), 30);
        assert_eq!(gguf.texts("tokens").unwrap(), ["a", "Ġb"]);
        assert!((gguf.float("eps").unwrap() - 1e-5).abs() < 1e-10);
        assert_eq!(gguf.tensors[0].shape, [2, 3]);
        assert_eq!(gguf.tensors[0].data.len(), 24);
        assert!(gguf.integer("eps").is_err() && gguf.text("none").is_err());
    }

    #[test]
    fn a_cut_file_is_an_error_wherever_it_is_cut() {
        let bytes = sample();
        for cut in 0..bytes.len() {
            assert!(Gguf::parse(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }
}

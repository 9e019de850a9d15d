//! The phase of the gate.

use super::{low_rank::Place, space::Space, state::Step};
use crate::{
    format::RowKind,
    kernels::{GateArgs, LANES},
    model::Linear,
    pool::Team,
    product::{Destination, Outputs, Rows},
};

impl Step<'_> {
    /// `inner = act(gate(rows)) * up(rows)`.
    pub(super) fn gated(
        &self,
        team: &Team<'_>,
        (linear, place): (&Linear, Place),
        rows: &Rows,
        space: &mut Space,
    ) {
        let (at, width) = (&self.at, self.model.config.intermediate_size);
        let (half, gelu) = (at.inner_rows.kind == RowKind::Bf16, self.model.gelu());
        let (out, out_bytes) = match at.inner_rows.kind {
            RowKind::Q8 => (at.inner.at(0).cast::<u8>(), 4 * width),
            _ => (at.inner_rows.data.at(0), at.inner_rows.stride),
        };
        let bytes = if half { 2 } else { 4 };
        let destination = Destination {
            at: out,
            row_bytes: out_bytes,
            panel_bytes: bytes * LANES / 2,
        };
        let sink = |tile: Outputs<'_>| {
            let first = tile.column / 2;
            let bias = linear.bias.get(tile.column..tile.column + tile.columns);
            let offset = tile.row * out_bytes + first * bytes;
            let args = GateArgs {
                values: tile.values,
                columns: tile.columns,
                bias: bias.unwrap_or_default(),
                gelu,
                out: out.wrapping_add(offset),
                out_bytes,
                len: (tile.columns / 2).min(width - first),
                half,
            };
            // SAFETY: see `Step`.
            unsafe { (self.ops.gate)(&args) };
        };
        // SAFETY: see `Step`.
        unsafe { self.product(team, (linear, place), rows, (2, destination), space, sink) };
    }
}

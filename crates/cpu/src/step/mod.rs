//! The forward pass: what every thread runs in a step.
//!
//! A step is a sequence of phases; this file has their order, and each kind of phase is a file
//! that sees only [`Step`]. All multiplications by a layer's matrices are in `linear`.
#![allow(unsafe_code)]

mod activations;
mod attend;
mod embed;
mod gate;
mod head;
mod inputs;
mod linear;
mod low_rank;
mod memory;
mod space;
mod state;
mod turn;

use crate::{
    model::{Layer, Part},
    pool::Team,
};

use low_rank::Place;
pub(crate) use memory::Memory;
use space::Space;
pub(crate) use state::{Step, Work};

impl Step<'_> {
    /// Computes the step. Every thread of the team calls it.
    pub(crate) fn run(&self, team: &Team<'_>) {
        let mut space = self.space(team);
        self.embed(team);
        team.barrier();
        let mut layers = self.model.layers.iter().enumerate().peekable();
        while let Some((index, layer)) = layers.next() {
            self.attention(team, index, layer, &mut space);
            if layers.peek().is_some() {
                self.rest(team, index, layer, &mut space);
            } else if let Some(kept) = self.keep(team) {
                // What nobody asks for is not computed: of a prompt all but its last token.
                kept.rest(team, index, layer, &mut space);
                kept.finish(team, &mut space);
            }
        }
    }

    /// Computes one layer for all tokens. Every thread of the team calls it.
    pub(crate) fn layer(&self, team: &Team<'_>, index: usize, layer: &Layer) {
        let mut space = self.space(team);
        self.attention(team, index, layer, &mut space);
        self.rest(team, index, layer, &mut space);
    }

    /// The first half of a layer, up to what attention takes from the values.
    fn attention(&self, team: &Team<'_>, index: usize, layer: &Layer, space: &mut Space) {
        let at = &self.at;
        let rows = self.norm(team, &layer.attention_norm, space);
        self.measure(team, &rows, layer.qkv.inputs, Part::Hidden);
        let place = self.narrow(team, (index, Part::Hidden), &rows);
        let columns = self.model.columns;
        self.store(
            team,
            (&layer.qkv, place),
            &rows,
            (at.qkv, columns.all),
            space,
        );
        if let Some(linear) = &layer.key_value {
            team.barrier();
            let place = Place {
                column: columns.key,
                ..place
            };
            self.store(team, (linear, place), &rows, (at.qkv, columns.all), space);
        }
        team.barrier();
        self.turn(team, index, layer, space);
        team.barrier();
        self.attend(team, index, space);
        team.barrier();
    }

    /// The second half of a layer: what attention took, and the gated part.
    fn rest(&self, team: &Team<'_>, index: usize, layer: &Layer, space: &mut Space) {
        let (config, at) = (&self.model.config, &self.at);
        let rows = self.quantized(team, at.attended, layer.output.inputs, &at.attended_rows);
        self.measure(team, &rows, layer.output.inputs, Part::Attended);
        let place = self.narrow(team, (index, Part::Attended), &rows);
        let norm = layer.attention_post_norm.as_deref();
        self.part_out(team, (&layer.output, place), &rows, norm, space);

        let rows = self.norm(team, &layer.mlp_norm, space);
        self.measure(team, &rows, layer.gate_up.inputs, Part::Gated);
        let place = self.narrow(team, (index, Part::Gated), &rows);
        self.gated(team, (&layer.gate_up, place), &rows, space);
        team.barrier();
        let width = config.intermediate_size;
        let rows = self.quantized(team, at.inner, width, &at.inner_rows);
        self.measure(team, &rows, width, Part::Inner);
        let place = self.narrow(team, (index, Part::Inner), &rows);
        let norm = layer.mlp_post_norm.as_deref();
        self.part_out(team, (&layer.down, place), &rows, norm, space);
    }
}

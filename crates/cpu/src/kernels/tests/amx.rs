//! AMX for processors that have none: the instructions fault there, and are carried out by the
//! handler of the fault, as the pseudo-code of Intel's Software Developer's Manual has them
//! (volume 2). So the machine code itself is tested everywhere, slowly.

use std::{cell::RefCell, sync::Once};

use hyprstream_engine::Backend;
use hyprstream_goldens::{TINY, Tiny, Way, logits};
use hyprstream_models::DType;

use crate::{Kernels, LoadOptions, load};

/// A register: 16 rows of 64 bytes.
type Register = [[u8; 64]; 16];

struct Tiles {
    configured: bool,
    rows: [usize; 8],
    row_bytes: [usize; 8],
    registers: [Register; 8],
}

thread_local! {
    static TILES: RefCell<Tiles> = const {
        RefCell::new(Tiles {
            configured: false,
            rows: [0; 8],
            row_bytes: [0; 8],
            registers: [[[0; 64]; 16]; 8],
        })
    };
}

/// Has AMX instructions carried out from now on.
pub(crate) fn emulate() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: a zeroed `sigaction` is a value, and the handler only touches the registers and
        // the memory that the instruction would touch.
        let failed = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_flags = libc::SA_SIGINFO;
            action.sa_sigaction = on_illegal as *const () as usize;
            libc::sigaction(libc::SIGILL, &raw const action, std::ptr::null_mut())
        };
        assert_eq!(failed, 0);
    });
}

extern "C" fn on_illegal(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel gives the context of the thread, which waits meanwhile.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let at = registers[libc::REG_RIP as usize];
    let instruction = Instruction::decode(at as *const u8, registers);
    if let Some(instruction) = instruction {
        TILES.with_borrow_mut(|tiles| tiles.run(&instruction));
        registers[libc::REG_RIP as usize] = at + instruction.len;
    } else {
        // Not ours: it ends the process when it is met again.
        // SAFETY: the default action.
        unsafe { libc::signal(libc::SIGILL, libc::SIG_DFL) };
    }
}

/// What a fault was about, or what the processor would fault at.
fn require(condition: bool, what: &str) {
    if !condition {
        eprintln!("AMX: {what}");
        std::process::abort();
    }
}

struct Instruction {
    opcode: u8,
    /// 0 for none, 1 for 66, 2 for F3, 3 for F2.
    prefix: u8,
    reg: usize,
    vvvv: usize,
    /// Another register, or where in memory and how far from row to row.
    operand: Operand,
    len: i64,
}

#[derive(Clone, Copy)]
enum Operand {
    Register(usize),
    Memory { at: usize, stride: usize },
}

impl Instruction {
    /// VEX.128.0F38.W0, as all of AMX is.
    fn decode(at: *const u8, registers: &[i64]) -> Option<Self> {
        // The order of the encoding.
        const ORDER: [libc::c_int; 16] = [
            libc::REG_RAX,
            libc::REG_RCX,
            libc::REG_RDX,
            libc::REG_RBX,
            libc::REG_RSP,
            libc::REG_RBP,
            libc::REG_RSI,
            libc::REG_RDI,
            libc::REG_R8,
            libc::REG_R9,
            libc::REG_R10,
            libc::REG_R11,
            libc::REG_R12,
            libc::REG_R13,
            libc::REG_R14,
            libc::REG_R15,
        ];
        let value = |register: usize| registers[ORDER[register] as usize] as usize;
        // SAFETY: the processor has read the instruction from there.
        let byte = |i: usize| unsafe { *at.add(i) };
        let (high, low, opcode, modrm) = (byte(1), byte(2), byte(3), byte(4));
        let is_vex = byte(0) == 0xc4 && high & 31 == 2 && low & 0x84 == 0;
        if !is_vex || !matches!(opcode, 0x49 | 0x4b | 0x5c | 0x5e) {
            return None;
        }
        // The bits of the prefix are inverted.
        let extend = |bit: u8| if high >> bit & 1 == 0 { 8 } else { 0 };
        let mode = modrm >> 6;
        let mut len = 5;
        let operand = if mode == 3 {
            Operand::Register(usize::from(modrm & 7))
        } else {
            let (mut base, mut index, mut scale) = (usize::from(modrm & 7), None, 0);
            if base == 4 {
                let sib = byte(len);
                len += 1;
                base = usize::from(sib & 7);
                let register = usize::from(sib >> 3 & 7) + extend(6);
                index = (register != 4).then_some(register);
                scale = sib >> 6;
            }
            require(mode > 0 || base != 5, "an address without a base");
            let displacement = match mode {
                0 => 0,
                1 => isize::from(byte(len).cast_signed()),
                _ => i32::from_le_bytes(std::array::from_fn(|i| byte(len + i))) as isize,
            };
            len += [0, 1, 4][usize::from(mode)];
            Operand::Memory {
                at: value(base + extend(5)).wrapping_add_signed(displacement),
                stride: index.map_or(0, |index| value(index) << scale),
            }
        };
        Some(Self {
            opcode,
            prefix: low & 3,
            reg: usize::from(modrm >> 3 & 7),
            vvvv: usize::from(!low >> 3 & 15),
            operand,
            len: len as i64,
        })
    }
}

impl Tiles {
    fn run(&mut self, instruction: &Instruction) {
        let Instruction {
            opcode,
            prefix,
            reg,
            vvvv,
            operand,
            ..
        } = *instruction;
        match (opcode, prefix, operand) {
            (0x49, 0, Operand::Memory { at, .. }) => self.configure(at),
            (0x49, 0, Operand::Register(0)) => self.configured = false,
            (0x49, 3, Operand::Register(0)) => {
                self.check(reg);
                self.registers[reg] = [[0; 64]; 16];
            }
            (0x4b, 1 | 3, Operand::Memory { at, stride }) => {
                self.check(reg);
                self.registers[reg] = [[0; 64]; 16];
                for row in 0..self.rows[reg] {
                    let to = &mut self.registers[reg][row][..self.row_bytes[reg]];
                    let from = at.wrapping_add(row * stride) as *const u8;
                    // SAFETY: what the instruction would read.
                    unsafe { from.copy_to(to.as_mut_ptr(), to.len()) };
                }
            }
            (0x4b, 2, Operand::Memory { at, stride }) => {
                self.check(reg);
                for row in 0..self.rows[reg] {
                    let from = &self.registers[reg][row][..self.row_bytes[reg]];
                    let to = at.wrapping_add(row * stride) as *mut u8;
                    // SAFETY: what the instruction would write.
                    unsafe { to.copy_from(from.as_ptr(), from.len()) };
                }
            }
            (0x5c, 2, Operand::Register(a)) => self.multiply(reg, a, vvvv, add_bf16),
            (0x5e, 2, Operand::Register(a)) => self.multiply(reg, a, vvvv, add_bytes),
            _ => require(false, &format!("instruction {opcode:x}, prefix {prefix}")),
        }
    }

    fn check(&self, register: usize) {
        require(self.configured, "not configured");
        require(self.rows[register] > 0, "a register that is not configured");
    }

    fn configure(&mut self, at: usize) {
        // SAFETY: what the instruction would read.
        let config = unsafe { (at as *const [u8; 64]).read() };
        require(config[0] == 1 && config[1] == 0, "palette and first row");
        require(config[2..16].iter().all(|b| *b == 0), "reserved bytes");
        require(
            config[32..48].iter().chain(&config[56..]).all(|b| *b == 0),
            "more than 8 registers",
        );
        self.registers = [[[0; 64]; 16]; 8];
        self.configured = true;
        for register in 0..8 {
            let at = 16 + 2 * register;
            let bytes = usize::from(u16::from_le_bytes([config[at], config[at + 1]]));
            let rows = usize::from(config[48 + register]);
            require(bytes <= 64 && rows <= 16, "a register too large");
            require((bytes == 0) == (rows == 0), "half a register");
            self.rows[register] = rows;
            self.row_bytes[register] = bytes;
        }
    }

    /// Adds to each word of `sum`: the words of its row of `a`, with those of its column of `b`.
    fn multiply(
        &mut self,
        sum: usize,
        a: usize,
        b: usize,
        add: impl Fn([u8; 4], &mut dyn Iterator<Item = ([u8; 4], [u8; 4])>) -> [u8; 4],
    ) {
        for register in [sum, a, b] {
            self.check(register);
        }
        require(sum != a && sum != b && a != b, "a register twice");
        let words = self.row_bytes[a] / 4;
        require(
            self.row_bytes.iter().all(|bytes| bytes % 4 == 0)
                && self.rows[sum] == self.rows[a]
                && self.rows[b] == words
                && self.row_bytes[sum] == self.row_bytes[b],
            "registers that do not fit",
        );
        let word = |register: &Register, row: usize, word: usize| {
            <[u8; 4]>::try_from(&register[row][4 * word..4 * word + 4]).expect("four bytes")
        };
        for row in 0..self.rows[sum] {
            for column in 0..self.row_bytes[sum] / 4 {
                let [rows, weights] = [a, b].map(|register| &self.registers[register]);
                let mut pairs = (0..words).map(|k| (word(rows, row, k), word(weights, k, column)));
                let added = add(word(&self.registers[sum], row, column), &mut pairs);
                self.registers[sum][row][4 * column..4 * column + 4].copy_from_slice(&added);
            }
        }
    }
}

/// TDPBF16PS: a chain for each half of the words, subnormal numbers taken and given as 0.
fn add_bf16(sum: [u8; 4], pairs: &mut dyn Iterator<Item = ([u8; 4], [u8; 4])>) -> [u8; 4] {
    let flush = |x: f32| if x.is_subnormal() { 0.0 } else { x };
    let halves = |word: [u8; 4]| {
        let word = u32::from_le_bytes(word);
        [word << 16, word & 0xffff_0000].map(|bits| flush(f32::from_bits(bits)))
    };
    let mut chains = [0.0_f32; 2];
    for (a, b) in pairs {
        for (chain, (a, b)) in chains.iter_mut().zip(halves(a).into_iter().zip(halves(b))) {
            *chain = flush(a.mul_add(b, *chain));
        }
    }
    let products = flush(chains[0] + chains[1]);
    flush(flush(f32::from_le_bytes(sum)) + products).to_le_bytes()
}

/// TDPBSUD: signed bytes of `a`, unsigned ones of `b`.
fn add_bytes(sum: [u8; 4], pairs: &mut dyn Iterator<Item = ([u8; 4], [u8; 4])>) -> [u8; 4] {
    let mut sum = i32::from_le_bytes(sum);
    for (a, b) in pairs {
        for (a, b) in a.into_iter().zip(b) {
            sum = sum.wrapping_add(i32::from(a.cast_signed()) * i32::from(b));
        }
    }
    sum.to_le_bytes()
}

#[test]
fn models_by_tiles_are_those_by_vectors_whatever_the_batch() {
    if !Kernels::Amx.available() {
        return;
    }
    for name in TINY {
        let tiny = Tiny::read(name);
        let backend = |kernels| {
            let options = LoadOptions {
                dtype: DType::BFloat16,
                kernels: Some(kernels),
                kv_cache_bytes: Some(8 << 20),
                threads: Some(2),
                ..LoadOptions::default()
            };
            load(tiny.dir(), &options).unwrap()
        };
        let (mut vectors, mut tiles) = (backend(Kernels::Avx512), backend(Kernels::Amx));
        let vocabulary = vectors.spec().vocab_size as u32;
        let tokens: Vec<u32> = (0..45).map(|i| (i * 31 + 7) % vocabulary).collect();
        let whole = logits(&mut tiles, &tokens, Way::Whole);
        for way in Way::ALL {
            let other = logits(&mut tiles, &tokens, way);
            assert!(whole == other, "{name} {way:?}");
        }
        let exact = logits(&mut vectors, &tokens, Way::Whole);
        let largest = exact.iter().flatten().fold(0.0_f32, |a, b| a.max(b.abs()));
        for (got, exact) in whole.iter().flatten().zip(exact.iter().flatten()) {
            let error = (got - exact).abs();
            assert!(error < 0.02 * largest, "{name}: {got} for {exact}");
        }
    }
}

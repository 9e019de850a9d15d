//! By what the registry is asked: the words of volumes, or the token of the node.

use std::fmt;

use hyprstream_contract::grants::Word;
use parking_lot::Mutex;

/// Most keys that are kept of one thing; the oldest go first.
const MOST: usize = 8;

/// What opens something on the registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// The token of the nodes, for volumes that have no word.
    Node,
    /// The word of a volume.
    Word(Word),
}

/// The keys of all who want one thing: several volumes may show the same, and one that is no longer
/// let in, or has another word by now, keeps no other out.
#[derive(Default)]
pub struct Access(Mutex<Vec<Held>>);

struct Held {
    key: Key,
    is_refused: bool,
    /// Whether it is worth trying although it was refused: it was brought again.
    is_fresh: bool,
}

impl From<Option<Word>> for Key {
    fn from(word: Option<Word>) -> Self {
        word.map_or(Self::Node, Self::Word)
    }
}

impl Access {
    /// That of one volume.
    pub fn of(key: Key) -> Self {
        let access = Self::default();
        access.offer(key);
        access
    }

    /// Somebody brings a key: it is tried first from now on, also if it was refused before.
    pub fn offer(&self, key: Key) {
        let mut held = self.0.lock();
        let found = held.iter().position(|held| held.key == key);
        let is_refused = found.is_some_and(|found| held.remove(found).is_refused);
        held.push(Held {
            key,
            is_refused,
            is_fresh: true,
        });
        if held.len() > MOST {
            held.remove(0);
        }
    }

    /// Takes up a key that is known already or is not the newest; changes nothing of one that is here.
    pub fn hold(&self, key: Key) {
        let mut held = self.0.lock();
        if !held.iter().any(|held| held.key == key) {
            let is_fresh = true;
            held.insert(
                0,
                Held {
                    key,
                    is_refused: false,
                    is_fresh,
                },
            );
            if held.len() > MOST {
                held.remove(0);
            }
        }
    }

    /// Takes up the keys of another.
    pub fn take_up(&self, other: &Self) {
        for key in other.keys().into_iter().rev() {
            self.offer(key);
        }
    }

    /// All keys, the newest first; that of the node if nobody has brought any.
    pub fn keys(&self) -> Vec<Key> {
        let held = self.0.lock();
        let keys: Vec<Key> = held.iter().rev().map(|held| held.key.clone()).collect();
        if keys.is_empty() {
            vec![Key::Node]
        } else {
            keys
        }
    }

    /// The key to ask by: the newest that was not refused, or was brought again since.
    pub fn key(&self) -> Option<Key> {
        let held = self.0.lock();
        if held.is_empty() {
            return Some(Key::Node);
        }
        let mut worth = held.iter().rev().filter(|held| !held.is_refused);
        let mut fresh = held.iter().rev().filter(|held| held.is_fresh);
        let found = worth.next().or_else(|| fresh.next());
        found.map(|held| held.key.clone())
    }

    /// The registry let somebody in by that key.
    pub fn accepted(&self, key: &Key) {
        self.judge(key, false);
    }

    /// The registry did not.
    pub fn refused(&self, key: &Key) {
        self.judge(key, true);
    }

    fn judge(&self, key: &Key, is_refused: bool) {
        let mut held = self.0.lock();
        if let Some(held) = held.iter_mut().find(|held| held.key == *key) {
            held.is_refused = is_refused;
            held.is_fresh = false;
        }
    }

    /// All are worth another try.
    pub fn try_again(&self) {
        let mut held = self.0.lock();
        held.iter_mut().for_each(|held| held.is_fresh = true);
    }

    /// Whether none of the keys opened it when it was last tried.
    pub fn is_refused(&self) -> bool {
        let held = self.0.lock();
        !held.is_empty() && held.iter().all(|held| held.is_refused)
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Access(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(byte: u8) -> Key {
        Key::Word(Word::from_bytes([byte; 32]))
    }

    #[test]
    fn the_newest_key_goes_first_and_an_old_one_helps_where_it_is_refused() {
        let access = Access::default();
        assert_eq!(access.keys(), [Key::Node]);
        assert!(!access.is_refused());
        access.offer(word(1));
        access.offer(word(2));
        assert_eq!(access.keys(), [word(2), word(1)]);
        access.refused(&word(2));
        assert_eq!(access.key(), Some(word(1)));
        access.refused(&word(1));
        assert!(access.is_refused());
        assert_eq!(access.key(), None, "until one is brought");
        access.hold(word(1));
        assert_eq!(access.key(), None, "which this does not");
        access.offer(word(1));
        assert_eq!(access.key(), Some(word(1)));
        assert!(access.is_refused(), "until it is let in");
        access.accepted(&word(1));
        assert!(!access.is_refused());
    }

    #[test]
    fn keys_are_shared_bounded_and_not_shown() {
        let one = Access::of(word(0));
        for byte in 1..20 {
            one.offer(word(byte));
        }
        assert_eq!(one.keys().len(), MOST);
        let other = Access::of(Key::Node);
        other.take_up(&one);
        assert_eq!(other.keys()[0], word(19));
        let shown = format!("{other:?} {:?}", other.keys());
        assert!(!shown.contains("hsv_"), "{shown}");
    }
}

//! Texts that many hosts share, each kept once under a small number. Agents make them, so their number is bounded.

use std::collections::HashMap;
use std::sync::Arc;

/// See the module. Number 0 is the empty text, and stands for whatever found no room.
#[derive(Debug)]
pub(crate) struct Words {
    texts: Vec<Arc<str>>,
    numbers: HashMap<Arc<str>, u16>,
    room: usize,
}

impl Words {
    /// For so many, the empty text included; at most 65,536.
    pub(crate) fn with_room(room: usize) -> Self {
        let empty: Arc<str> = "".into();
        Self {
            texts: vec![Arc::clone(&empty)],
            numbers: HashMap::from([(empty, 0)]),
            room,
        }
    }

    /// The number of a text.
    pub(crate) fn index(&mut self, text: &str) -> u16 {
        if let Some(number) = self.numbers.get(text) {
            return *number;
        }
        let number = match u16::try_from(self.texts.len()) {
            Ok(number) if self.texts.len() < self.room => number,
            _ => return 0,
        };
        let text: Arc<str> = text.into();
        self.texts.push(Arc::clone(&text));
        self.numbers.insert(text, number);
        number
    }

    /// The text behind a number.
    pub(crate) fn get(&self, number: u16) -> Arc<str> {
        let text = self.texts.get(usize::from(number));
        text.map_or_else(|| "".into(), Arc::clone)
    }

    /// The same, borrowed.
    pub(crate) fn text(&self, number: u16) -> &str {
        self.texts.get(usize::from(number)).map_or("", |text| text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn their_number_is_bounded() {
        let mut words = Words::with_room(10);
        for number in 0..20 {
            words.index(&number.to_string());
        }
        assert_eq!(words.texts.len(), 10);
        let (kept, lost) = (words.index("7"), words.index("15"));
        assert_eq!(words.text(kept), "7");
        assert_eq!((lost, &*words.get(lost)), (0, ""));
    }
}

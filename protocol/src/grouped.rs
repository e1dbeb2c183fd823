//! Large numbers for people.

use std::fmt::{self, Display, Formatter};

/// A number with a comma before each three digits: `1234567` is `1,234,567`.
#[derive(Clone, Copy, Debug)]
pub struct Grouped(pub u64);

impl Display for Grouped {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        let mut text = String::with_capacity(digits.len() * 4 / 3);
        for (index, digit) in digits.chars().enumerate() {
            if index > 0 && (digits.len() - index).is_multiple_of(3) {
                text.push(',');
            }
            text.push(digit);
        }
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_grouped() {
        let texts = [0, 12, 999, 1_000, 1_234_567].map(|number| Grouped(number).to_string());
        assert_eq!(texts, ["0", "12", "999", "1,000", "1,234,567"]);
    }
}

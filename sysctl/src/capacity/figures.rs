//! The measured figures that are built in.

use std::sync::OnceLock;

use fleet_protocol::measured::{FORMAT, Figure, Measured};

use super::Error;

/// Made by `fleet-loadtest calibrate --out`.
const TEXT: &str = include_str!("../../data/measured.json");

/// The built-in data file.
pub fn measured() -> Result<&'static Measured, Error> {
    static FILE: OnceLock<Result<Measured, Error>> = OnceLock::new();
    FILE.get_or_init(|| read(TEXT))
        .as_ref()
        .map_err(Clone::clone)
}

fn read(text: &str) -> Result<Measured, Error> {
    let file: Measured =
        serde_json::from_str(text).map_err(|error| Error::Data(error.to_string()))?;
    if file.format == FORMAT {
        Ok(file)
    } else {
        Err(Error::Data(format!("format {}", file.format)))
    }
}

/// Figures to count with.
#[derive(Clone, Copy, Debug)]
pub struct Figures<'a>(&'a Measured);

impl<'a> Figures<'a> {
    /// Those of a file.
    pub fn new(measured: &'a Measured) -> Self {
        Self(measured)
    }

    /// The value of one, in its unit.
    pub fn get(&self, figure: Figure) -> Result<f64, Error> {
        self.0
            .value(figure)
            .filter(|value| value.is_finite() && *value >= 0.0)
            .ok_or(Error::Figure(figure.id()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_file_is_whole() {
        let file = measured().unwrap();
        assert_eq!(file.missing(), [""; 0]);
        for figure in Figure::ALL {
            let sample = &file.figures[figure.id()];
            assert_eq!(sample.unit, figure.unit(), "{figure:?}");
            assert!(
                sample.low <= sample.value && sample.value <= sample.high,
                "{figure:?}"
            );
        }
        for text in [&file.date, &file.machine.cpu, &file.command, &file.server] {
            assert!(!text.is_empty());
        }
        assert!(file.command.starts_with("fleet-loadtest calibrate"));
        assert!(file.machine.cores > 0);
    }

    #[test]
    fn a_wrong_file_is_refused() {
        assert!(matches!(read("{}"), Err(Error::Data(_))));
        let other = TEXT.replacen("\"format\": 1", "\"format\": 2", 1);
        assert_eq!(read(&other), Err(Error::Data("format 2".into())));
    }
}

//! Which platform to run on, as a person names it: `xen` or `hosted:DIR[,DOMID]`.
//!
//! Does not open anything: that is [`crate::Platform::open`].

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use xen_types::{DomId, parse_decimal};

/// A platform, not yet opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlatformSpec {
    /// The Xen that this machine runs on.
    Xen,
    /// One domain of a hosted platform.
    Hosted {
        /// The broker's directory.
        dir: PathBuf,
        /// The domain that this process plays.
        domid: DomId,
    },
}

/// Text that names no platform.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no platform: expected `xen` or `hosted:DIR[,DOMID]`")]
pub struct ParseSpecError(String);

impl PlatformSpec {
    /// Xen, if this kernel has Xen's event channels; `None` where only a hosted
    /// platform is possible, which needs a directory.
    #[must_use]
    pub fn default_for_machine() -> Option<Self> {
        Path::new(crate::xen::EVTCHN).exists().then_some(Self::Xen)
    }
}

impl FromStr for PlatformSpec {
    type Err = ParseSpecError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseSpecError(text.to_owned());
        if text == "xen" {
            return Ok(Self::Xen);
        }
        let rest = text.strip_prefix("hosted:").ok_or_else(error)?;
        // A directory's name may hold a comma: only a number behind the last one is a domain.
        let (dir, domid) = match rest.rsplit_once(',') {
            Some((dir, number)) => {
                let number = parse_decimal(number.as_bytes()).ok_or_else(error)?;
                let domid = u16::try_from(number).map_err(|_| error())?;
                (dir, DomId(domid))
            }
            None => (rest, DomId::DOM0),
        };
        if dir.is_empty() || domid >= DomId::FIRST_RESERVED {
            return Err(error());
        }
        Ok(Self::Hosted {
            dir: PathBuf::from(dir),
            domid,
        })
    }
}

impl fmt::Display for PlatformSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Xen => f.write_str("xen"),
            Self::Hosted { dir, domid } => write!(f, "hosted:{},{domid}", dir.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosted(dir: &str, domid: u16) -> PlatformSpec {
        PlatformSpec::Hosted {
            dir: PathBuf::from(dir),
            domid: DomId(domid),
        }
    }

    #[test]
    fn the_written_forms_are_read() {
        assert_eq!("xen".parse(), Ok(PlatformSpec::Xen));
        assert_eq!("hosted:d/e".parse(), Ok(hosted("d/e", 0)));
        assert_eq!("hosted:d,7".parse(), Ok(hosted("d", 7)));
        assert_eq!("hosted:a,b,7".parse(), Ok(hosted("a,b", 7)));
    }

    #[test]
    fn anything_else_is_refused_and_named() {
        for bad in [
            "",
            "Xen",
            "hosted",
            "hosted:",
            "hosted:,1",
            "hosted:d,",
            "hosted:d,x",
            "hosted:d,-1",
            "hosted:d,01",
            "hosted:d,65536",
            "hosted:d,32752",
        ] {
            let error = bad.parse::<PlatformSpec>().unwrap_err();
            assert!(error.to_string().contains(&format!("`{bad}`")), "{error}");
        }
    }

    #[test]
    fn printing_and_parsing_agree() {
        for spec in [PlatformSpec::Xen, hosted("a b,c", 3)] {
            assert_eq!(spec.to_string().parse(), Ok(spec));
        }
    }
}

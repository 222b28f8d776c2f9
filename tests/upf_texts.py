"""Small pseudopotential files of each format, for tests of reading and finding them."""

from __future__ import annotations

from pathlib import Path

# The radial parts are a few numbers instead of a thousand: nothing here is fit for a calculation.
NUMBERS = "  1.000000000000000E-003  2.500000000000000E-003 -3.000000000000000E+000\n" * 20

VERSION_2 = """<UPF version="2.0.1">
  <PP_INFO>
    Author: "Nan Inf" <nan@upf.org>, ***, not XML: 1 < 2, see <PP_HEADER> and <pp_header> below
    <PP_INPUTFILE>
&input
   title='Si', config='[Ne] 3s2 3p2 3d-1'
/
    </PP_INPUTFILE>
  </PP_INFO>
  <PP_HEADER generated='Generated using "atomic" code' author="Nan > Inf" comment="" {attributes}/>
  <PP_MESH>
    <PP_R type="real" size="60" columns="3">
NUMBERS    </PP_R>
  </PP_MESH>
  <PP_RHOATOM type="real" size="60" columns="3">
NUMBERS  </PP_RHOATOM>
</UPF>
""".replace("NUMBERS", NUMBERS)

VERSION_1 = """<PP_INFO>
Generated using &input nan
Author: anonymous   Generation date: 27Apr2007
    1        The Pseudo was generated with a Scalar-Relativistic Calculation
</PP_INFO>


<PP_HEADER>
   0                   Version Number
  Si                   Element
   US                  Ultrasoft pseudopotential
    T                  Nonlinear Core Correction
 SLA  PW   PBX  PBC    PBE  Exchange-Correlation functional
    4.00000000000      Z valence
   -7.48292757640      Total energy
     23.557    371.902 Suggested cutoff for wfc and rho
    2                  Max angular momentum component
   60                  Number of points in mesh
    0    0             Number of Wavefunctions, Number of Projectors
 Wavefunctions         nl  l   occ
</PP_HEADER>


<PP_MESH>
  <PP_R>
NUMBERS  </PP_R>
</PP_MESH>


<PP_RHOATOM>
NUMBERS</PP_RHOATOM>
""".replace("NUMBERS", NUMBERS)

SPIN_ORBIT_OF_VERSION_1 = "\n\n<PP_ADDINFO>\n3S  1  0  0.50  2.00\n    0  0.50\n</PP_ADDINFO>\n"

# The child elements and their order are those of write_pp_header_schema in QE's write_upf_new.f90.
SCHEMA = """<?xml version="1.0" encoding="UTF-8"?>
<qe_pp:pseudo xsi:schemalocation="http://www.quantum-espresso.org/ns/qes/qe_pp-1.0">
<xsd_version>0.1</xsd_version>
<pp_info>
  <element>Ge</element>
</pp_info>
<pp_header>
  <element>Si</element>
  <z_valence>4.000000000000000E+000</z_valence>
  <type>PAW</type>
  <functional>SLA PW PSX PSC</functional>
  <relativistic>scalar</relativistic>
  <is_ultrasoft>true</is_ultrasoft>
  <is_paw>true</is_paw>
  <has_so>false</has_so>
  <total_psenergy>-1.100000000000000E+001</total_psenergy>
  <wfc_cutoff>4.400000000000000E+001</wfc_cutoff>
  <rho_cutoff>1.750000000000000E+002</rho_cutoff>
</pp_header>
<pp_rhoatom size="60">
NUMBERS</pp_rhoatom>
</qe_pp:pseudo>
""".replace("NUMBERS", NUMBERS)


def version_2(**changes: str | None) -> str:
    """A UPF 2 file of silicon; a change to None leaves the attribute out."""
    attributes: dict[str, str | None] = {
        "element": "Si",
        "pseudo_type": "NC",
        "relativistic": "scalar",
        "is_ultrasoft": "F",
        "is_paw": "F",
        "has_so": "F",
        "functional": " SLA  PW   PBX  PBC",
        "z_valence": "4.000000000000000E+000",
        "total_psenergy": "-7.5",
        "wfc_cutoff": "3.0E+001",
        "rho_cutoff": "1.2E+002",
        **changes,
    }
    return VERSION_2.format(attributes="\n".join(f'{k}="{v}"' for k, v in attributes.items() if v is not None))


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path

"""clsloc: detectors that decouple classification and localisation, as Detectron2 projects."""

try:
    import detectron2_lite
except ImportError:  # installed without the embedded runtime: a real Detectron2 has to be there
    pass
else:
    detectron2_lite.install()

__version__ = "0.1.0"

"""Stock box-detection configs of Detectron2's model zoo, and where their weights are."""

from detectron2.model_zoo.model_zoo import get, get_checkpoint_url, get_config, get_config_file

__all__ = ["get", "get_checkpoint_url", "get_config", "get_config_file"]

"""Networks of `pytorchcv`: image classifiers of the last ten years, segmentation, pose, detection, speech.

Its modules are imported one by one, since the package's own table of models asks for torchvision.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from importlib import import_module

from torch import nn

from tersor.ir.foreign import Instance

from .entry import Entry, Integers, Numbers

# Family, then file: names of its functions. All take pictures of 224 x 224, unless SIZES says something else.
CLASSIFIERS = {
    "AlexNet and VGG": {"alexnet": "alexnet alexnetb", "zfnet": "zfnet", "vgg": "vgg11 vgg16 bn_vgg11b"},
    "ResNet": {
        "resnet": "resnet10 resnet18 resnet50 resnet50b",
        "resnet_cifar": "resnet20_cifar10 resnet56_cifar10",
        "preresnet": "preresnet18 preresnet50b",
        "preresnet_cifar": "preresnet20_cifar10",
        "resnext": "resnext14_16x4d resnext50_32x4d",
        "resnext_cifar": "resnext20_16x4d_cifar10",
        "wrn": "wrn50_2",
        "wrn_cifar": "wrn16_10_cifar10",
        "resneta": "resneta10",
        "resnetd": "resnetd50b",
        "pyramidnet_cifar": "pyramidnet110_a48_cifar10",
        "resdropresnet_cifar": "resdropresnet20_cifar10",
        "shakeshakeresnet_cifar": "shakeshakeresnet20_2x16d_cifar10",
        "ror_cifar": "ror3_56_cifar10",
        "rir_cifar": "rir_cifar10",
        "sharesnet": "sharesnet18",
        "diracnetv2": "diracnet18v2",
        "revnet": "revnet38",
        "bagnet": "bagnet9",
        "drn": "drnc26",
        "dla": "dla34 dla46xc",
        "hrnet": "hrnet_w18_small_v1 hrnetv2_w18",
        "fishnet": "fishnet99",
        "tresnet": "tresnet_m",
        "isqrtcovresnet": "isqrtcovresnet18",
        "octresnet": "octresnet10_ad2",
        "ibnresnet": "ibn_resnet50",
        "ibnbresnet": "ibnb_resnet50",
    },
    "ResNet with attention": {
        "seresnet": "seresnet10 seresnet50",
        "seresnet_cifar": "seresnet20_cifar10",
        "sepreresnet": "sepreresnet18",
        "seresnext": "seresnext50_32x4d",
        "senet": "senet16",
        "fastseresnet": "fastseresnet101b",
        "cbamresnet": "cbam_resnet18",
        "bamresnet": "bam_resnet18",
        "sknet": "sknet50",
        "scnet": "scnet50",
        "resnesta": "resnestabc14",
        "resattnet": "resattnet56",
        "diaresnet": "diaresnet10",
        "diaresnet_cifar": "diaresnet20_cifar10",
        "airnet": "airnet50_1x64d_r2",
        "airnext": "airnext50_32x4d_r2",
    },
    "DenseNet": {
        "densenet": "densenet121",
        "densenet_cifar": "densenet40_k12_cifar10",
        "xdensenet_cifar": "xdensenet40_2_k24_bc_cifar10",
        "ibndensenet": "ibn_densenet121",
        "condensenet": "condensenet74_c4_g4",
        "sparsenet": "sparsenet121",
        "peleenet": "peleenet",
        "dpn": "dpn68",
        "vovnet": "vovnet27s",
        "hardnet": "hardnet39ds",
        "selecsls": "selecsls42b",
        "msdnet": "msdnet22",
        "fractalnet_cifar": "fractalnet_cifar10",
    },
    "Inception": {
        "bninception": "bninception",
        "inceptionv3": "inceptionv3",
        "inceptionv4": "inceptionv4",
        "inceptionresnetv1": "inceptionresnetv1",
        "inceptionresnetv2": "inceptionresnetv2",
        "xception": "xception",
        "polynet": "polynet",
    },
    "Small convolutional": {
        "nin_cifar": "nin_cifar10",
        "darknet": "darknet_tiny darknet19",
        "darknet53": "darknet53",
        "squeezenet": "squeezenet_v1_0 squeezenet_v1_1 squeezeresnet_v1_1",
        "squeezenext": "sqnxt23_w1",
        "shufflenet": "shufflenet_g1_wd4 shufflenet_g3_w1 shufflenet_g8_w1",
        "shufflenetv2": "shufflenetv2_wd2 shufflenetv2_w1",
        "shufflenetv2b": "shufflenetv2b_w1",
        "menet": "menet108_8x1_g3",
        "mobilenet": "mobilenet_wd4 mobilenet_w1",
        "fdmobilenet": "fdmobilenet_w1",
        "mobilenetb": "mobilenetb_w1",
        "mobilenetv2": "mobilenetv2_w1 mobilenetv2b_w1",
        "mobilenetv3": "mobilenetv3_small_w1 mobilenetv3_large_w1",
        "igcv3": "igcv3_w1 igcv3_wd4",
        "ghostnet": "ghostnet",
        "mnasnet": "mnasnet_b1 mnasnet_a1 mnasnet_small",
        "proxylessnas": "proxylessnas_mobile",
        "fbnet": "fbnet_cb",
        "spnasnet": "spnasnet",
        "mixnet": "mixnet_s",
        "espnetv2": "espnetv2_wd2",
        "dicenet": "dicenet_wd5",
        "channelnet": "channelnet",
        "efficientnet": "efficientnet_b0 efficientnet_b1 efficientnet_b0b",
        "efficientnetedge": "efficientnet_edge_small_b",
        "regnet": "regnetx002 regnetx016 regnety002 regnety016",
        "darts": "darts",
        "nasnet": "nasnet_4a1056",
        "pnasnet": "pnasnet5large",
    },
    "Segmentation": {
        "fcn8sd": "fcn8sd_resnetd50b_voc",
        "pspnet": "pspnet_resnetd50b_voc",
        "deeplabv3": "deeplabv3_resnetd50b_voc",
        "danet": "danet_resnetd50b_cityscapes",
        "icnet": "icnet_resnetd50b_cityscapes",
        "fastscnn": "fastscnn_cityscapes",
        "bisenet": "bisenet_resnet18_celebamaskhq",
        "cgnet": "cgnet_cityscapes",
        "dabnet": "dabnet_cityscapes",
        "sinet": "sinet_cityscapes",
        "fpenet": "fpenet_cityscapes",
        "contextnet": "ctxnet_cityscapes",
        "lednet": "lednet_cityscapes",
        "esnet": "esnet_cityscapes",
        "edanet": "edanet_cityscapes",
        "enet": "enet_cityscapes",
        "erfnet": "erfnet_cityscapes",
        "linknet": "linknet_cityscapes",
        "segnet": "segnet_cityscapes",
        "unet": "unet_cityscapes",
        "sqnet": "sqnet_cityscapes",
        "espcnet": "espcnet_cityscapes",
    },
    "Pose, faces, detection": {
        "simplepose_coco": "simplepose_resnet18_coco",
        "simpleposemobile_coco": "simplepose_mobile_mobilenetv2b_w1_coco",
        "alphapose_coco": "alphapose_fastseresnet101b_coco",
        "lwopenpose_cmupan": "lwopenpose2d_mobilenet_cmupan_coco lwopenpose3d_mobilenet_cmupan_coco",
        "ibppose_coco": "ibppose_coco",
        "centernet": "centernet_resnet18_voc",
        "lffd": "lffd20x5s320v2_widerface",
        "prnet": "prnet",
        "pfpcnet": "pfpcnet",
        "superpointnet": "superpointnet",
    },
}
SIZES = {
    "inceptionv3": (299, 299),
    "inceptionv4": (299, 299),
    "inceptionresnetv1": (299, 299),
    "inceptionresnetv2": (299, 299),
    "xception": (299, 299),
    "polynet": (331, 331),
    "pnasnet5large": (331, 331),
    "efficientnet_b1": (240, 240),
    "pfpcnet": (320, 240),
}
MAPS = ("Segmentation", "Pose, faces, detection")  # families whose networks are built for a size of picture
MAP_SIZE = (256, 256)
HEATED = (
    "simplepose_coco",
    "simpleposemobile_coco",
    "alphapose_coco",
)  # what they do with their maps depends on the data
GREY = ("superpointnet", "pfpcnet")
SPEECH = {"jasper": "jasper5x3", "quartznet": "quartznet5x5_en_ls quartznet15x5_en"}
BANDS, FRAMES = 64, 128  # of a second and a quarter of speech


def entries() -> Iterator[Entry]:
    """All of this file."""
    for family, files in CLASSIFIERS.items():
        for file, names in files.items():
            for name in names.split():
                usual = (32, 32) if file.endswith("_cifar") else MAP_SIZE if family in MAPS else (224, 224)
                size = SIZES.get(name, usual)
                options: dict[str, Instance] = {"in_size": size} if family in MAPS and name not in GREY else {}
                options |= {"return_heatmap": True} if file in HEATED else {}
                picture = Numbers((1, 1 if name in GREY else 3, *size))
                yield Entry(name, family, partial(make, file, name, **options), (picture,))
    for file, names in SPEECH.items():
        for name in names.split():
            inputs = (Numbers((1, BANDS, FRAMES)), Integers((1,), FRAMES + 1, FRAMES))
            yield Entry(name, "Speech", partial(make, file, name, from_audio=False), inputs)


def make(file: str, name: str, **options: Instance) -> nn.Module:
    """A network of the package; it brings no weights."""
    return getattr(import_module(f"pytorchcv.models.{file}"), name)(**options)

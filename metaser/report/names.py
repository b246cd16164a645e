"""Names and explanations that the reports print."""

METHODS = {
    "metaser": ("MetaSER", "first-order MAML over the sources, then adapted to the support set"),
    "metaser_second_order": (
        "MetaSER (second order)",
        "MAML with second derivatives over the sources, adapted to the support set",
    ),
    "maml": ("MAML", "second derivatives, one fixed inner rate"),
    "fomaml": ("FOMAML", "first-order MAML, one fixed inner rate"),
    "anil": ("ANIL", "MAML whose inner loop changes the head alone"),
    "boil": ("BOIL", "MAML whose inner loop changes the backbone alone"),
    "meta_sgd": ("Meta-SGD", "MAML with a learnt rate for each element of each parameter"),
    "maml_plus_plus": (
        "MAML++",
        "MAML with learnt rates per layer and step, and losses after every inner step early on",
    ),
    "proto_maml": ("Proto-MAML", "MAML whose head starts from the support set's class means"),
    "protonet": ("ProtoNet", "nearest class mean in a learnt embedding, nothing is tuned"),
    "ridge": ("Ridge head", "ridge regression, solved at once, on an embedding learnt for it"),
    "reptile": ("Reptile", "moves the initialisation towards where training on a task leads"),
    "mldg": ("MLDG", "learns so that a step on one source helps on another, then fine-tuned"),
    "inner_loop_alone": (
        "MetaSER, inner loop alone",
        "adapted by the inner loop's steps on the support set, without rehearsing source clips",
    ),
    "multiser": (
        "MultiSER",
        "each emotion a task of its own on all sources, dense layers fine-tuned on the support set",
    ),
    "transser": (
        "TransSER",
        "trained on one source after the other, dense layers fine-tuned on the support set",
    ),
    "transser_released": (
        "TransSER, as released",
        "trained on all sources, new dense layers fine-tuned on the support set with small steps",
    ),
    "multiser_released": (
        "MultiSER, as released",
        "one emotion drawn a step; the support set joins the source clips, all is trained on",
    ),
    "fine_tuning": (
        "Fine-tuning",
        "trained jointly on the sources, then all of it fine-tuned on the support set",
    ),
    "fine_tuning_rehearsal": (
        "Fine-tuning with rehearsal",
        "trained jointly, then fine-tuned on the support set while rehearsing source clips",
    ),
    "adversarial": (
        "Adversarial (DANN)",
        "trained jointly against adversaries of speaker and corpus, then all of it fine-tuned",
    ),
    "daae": (
        "DAAE",
        "autoencoder with adversaries of speaker and corpus, trained jointly, then fine-tuned",
    ),
    "contrastive": (
        "Contrastive",
        "trained jointly, clips of a class drawn together across languages, then fine-tuned",
    ),
    "metaser_adversarial": (
        "MetaSER, adversarial",
        "MetaSER with adversaries of speaker and corpus in its outer loss",
    ),
    "metaser_contrastive": (
        "MetaSER, contrastive",
        "MetaSER whose outer loss draws clips of a class together across languages",
    ),
    "head_tuning": ("Head tuning", "trained jointly on the sources, then its head fine-tuned"),
    "logistic_regression": (
        "Logistic regression",
        "on pooled features of the support set alone, no sources",
    ),
    "logistic_regression_sources": (
        "Logistic regression + sources",
        "on pooled features of the sources and the support set",
    ),
    "gan_augmentation": (
        "GAN augmentation",
        "logistic regression on the support set and on vectors that a GAN generates from it",
    ),
    "gan_head_tuning": (
        "GAN head tuning",
        "head tuning on the support set and on embeddings that a GAN generates from it",
    ),
    "from_scratch": ("From scratch", "the same network trained on the support set alone"),
    "zero_shot": ("Zero-shot", "trained on the sources, not adapted"),
    "metaser_by_evidence": (
        "MetaSER by evidence",
        "MetaSER's network and a Gaussian process, each trusted as far as it foretells the "
        "labelled clips of one speaker from those of the others",
    ),
    "gaussian_process": (
        "Gaussian process",
        "a linear function per language, in closed form; the labelled clips say how far to trust "
        "the sources",
    ),
    "majority": ("Majority", "always the most frequent class"),
    "chance": ("Chance", "classes at random"),
}

NORMALISE = {
    "none": "not normalised: nothing of the target is seen but the support set",
    "corpus": (
        "normalised per corpus: mean and deviation of the target come from all its clips, the "
        "unlabelled query clips among them"
    ),
    "speaker": (
        "normalised per speaker: mean and deviation come from all clips of each target speaker, "
        "the unlabelled query clips among them, and speaker identities are taken as known"
    ),
    "voice": (
        "normalised by the statistics of each voice as far as the labelled clips show that this is "
        "safe, else by those of the corpus, the unlabelled query clips among them; who speaks is "
        "taken as known, and of each voice {known}"
    ),
}

ROLES = {"target": "target", "held_out_source": "held-out source"}

AXIS_TITLES = {
    "shots": "labelled clips per class (shots)",
    "fraction": "share of the training data (%)",
}

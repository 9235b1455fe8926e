# For Packer 1.7 and newer, where builders and provisioners are programs of their own: `packer init packer/plugins.pkr.hcl`.
# Outside the folders of the images, because Packer 1.6 refuses this block.
packer {
  required_plugins {
    amazon = {
      version = ">= 1.3.0"
      source  = "github.com/hashicorp/amazon"
    }
    ansible = {
      version = ">= 1.1.0"
      source  = "github.com/hashicorp/ansible"
    }
  }
}
